"""Figures of gates by group, against what is known of them by hand."""

from __future__ import annotations

import numpy as np
import pytest

from adafilter_dist.evaluate.gate_groups import GroupCounts

GROUPS = np.repeat([0, 1], [40, 40])


def counted(*columns: np.ndarray, groups: np.ndarray = GROUPS, number: int = 2) -> GroupCounts:
    gates = np.stack(columns, axis=1).astype(bool)
    return GroupCounts.of(np.packbits(gates, axis=1), len(columns), groups, number)


def ones(first: int, second: int) -> np.ndarray:
    """Gates that so many of each forty have at 1."""
    place = np.arange(80) % 40
    return np.where(GROUPS == 0, place < first, place < second)


def test_means_of_all_and_of_a_group() -> None:
    counts = counted(ones(0, 40), ones(10, 20))
    assert counts.means.tolist() == [0.5, 0.375]
    assert counts.mean_of(1).tolist() == [1, 0.5]
    assert counts.mean_of(np.array([1, 0])).tolist() == [[1, 0.5], [0, 0.25]]


def entropy(p: float) -> float:
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def test_information_in_bits() -> None:
    counts = counted(ones(0, 40), ones(20, 20), ones(40, 40), ones(10, 30), ones(0, 20))
    wanted = [1, 0, 0, 1 - entropy(0.25), entropy(0.25) - 0.5]
    assert counts.information() == pytest.approx(wanted, abs=1e-12)
    assert counts.entropy() == 1
    rare = counted(GROUPS == 1, groups=np.repeat([0, 1], [20, 60]), number=3)
    assert rare.entropy() == pytest.approx(entropy(0.25))


def test_gates_that_know_nothing_have_the_information_of_chance() -> None:
    draw = np.random.default_rng(0)
    counts = counted(*(draw.random(80) < 0.5 for _ in range(4000)))
    # Of 2 groups and n pictures 1 / (2 n ln 2) to the first order.
    assert counts.information().mean() == pytest.approx(1 / (160 * np.log(2)), rel=0.05)


def test_variance_between_and_within_groups() -> None:
    counts = counted(ones(0, 40), ones(20, 20), ones(10, 30))
    variances = counts.variances()
    assert variances is not None
    between, within = variances
    # Within a group of forty with p: p (1 - p) * 40 / 39, the unbiased variance.
    assert within == pytest.approx([0, 0.25 * 40 / 39, 0.1875 * 40 / 39])
    assert between + within == pytest.approx([0.25 * 80 / 79] * 3)


def test_variance_between_groups_is_nothing_on_average_for_gates_of_chance() -> None:
    draw = np.random.default_rng(0)
    groups = np.arange(40) % 16  # two or three pictures a group
    columns = (draw.random(40) < 0.3 for _ in range(20_000))
    variances = counted(*columns, groups=groups, number=20).variances()
    assert variances is not None
    between, within = variances
    assert within.mean() == pytest.approx(0.21, rel=0.01)
    assert abs(between.mean()) < 0.003, "0.13 of 0.21 without the correction"


def test_one_picture_a_group_says_nothing_of_the_variance() -> None:
    one = np.array([True, False])
    assert counted(one, groups=np.array([0, 1])).variances() is None
