"""Whose gates a picture gets: never its own, and of the right group."""

from __future__ import annotations

import numpy as np
import pytest

from adafilter_dist.evaluate.gate_donors import NO_DONOR, donors_across, donors_within, partners


@pytest.mark.parametrize("n", [2, 3, 40, 1001])
def test_nobody_is_its_own_partner(n: int) -> None:
    partner = partners(n, seed=3)
    assert sorted(partner) == list(range(n))
    assert not (partner == np.arange(n)).any()
    assert (partner == partners(n, seed=3)).all()
    assert n < 4 or (partner != partners(n, seed=4)).any()


GROUPS = np.random.default_rng(0).choice([0, 2, 5], p=[0.7, 0.2, 0.1], size=400)


def test_another_picture_of_the_same_group() -> None:
    donors = donors_within(GROUPS, 3, "same_class")
    assert (GROUPS[donors] == GROUPS).all() and (donors != np.arange(400)).all()
    assert sorted(donors) == list(range(400)), "each picture gives once, so means are the same"
    assert (donors_within(GROUPS, 3, "same_class") == donors).all()
    assert (donors_within(GROUPS, 3, "same_domain") != donors).any()


def test_a_picture_of_another_group() -> None:
    given = np.zeros(400, dtype=np.int64)
    for seed in range(200):
        donors = donors_across(GROUPS, seed, "other_class")
        assert (GROUPS[donors] != GROUPS).all()
        given += np.bincount(donors, minlength=400)
    # Each other picture alike: of group g it is taken by all others, each with 1 / (n - n_g).
    sizes = np.bincount(GROUPS)
    for group in (0, 2, 5):
        takers = sum(sizes[one] / (400 - sizes[one]) for one in (0, 2, 5) if one != group)
        assert given[group == GROUPS].mean() == pytest.approx(200 * takers, rel=0.05)
    assert (given > 0).all()


def test_who_has_no_other_picture_has_no_donor() -> None:
    groups = np.array([1, 0, 1, 4])
    assert donors_within(groups, 0, "same_class").tolist() == [2, NO_DONOR, 0, NO_DONOR]
    assert (donors_across(np.ones(5, dtype=np.int64), 0, "other_domain") == NO_DONOR).all()
    assert partners(1, 0).tolist() == [NO_DONOR]
