from __future__ import annotations

import numpy as np
import pytest

from adafilter_dist.data.sources.split import SplitPurpose, cut_count, cut_fraction, keep_fraction
from adafilter_dist.errors import UserError

LABELS = np.repeat(np.arange(4), (100, 37, 2, 1))
MIXED = np.random.default_rng(0).permutation(LABELS)
NAMES = ["a", "b", "c", "d"]


def test_fraction_takes_the_rounded_share_of_every_class() -> None:
    rest, part = cut_fraction(MIXED, 0.2, 0, SplitPurpose.TEST)
    # 37 * 0.2 = 7.4; one of two; the only one stays
    assert np.bincount(MIXED[part], minlength=4).tolist() == [20, 7, 1, 0]
    assert np.bincount(MIXED[rest], minlength=4).tolist() == [80, 30, 1, 1]
    assert sorted([*rest, *part]) == list(range(len(MIXED)))
    assert (np.diff(rest) > 0).all() and (np.diff(part) > 0).all()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.999, 1.0])
def test_fraction_never_takes_a_whole_class_nor_less_than_one(fraction: float) -> None:
    rest, part = cut_fraction(LABELS, fraction, 0, SplitPurpose.VAL)
    taken = np.bincount(LABELS[part], minlength=4)
    expected = {0.0: [0, 0, 0, 0], 0.001: [1, 1, 1, 0]}.get(fraction, [99, 36, 1, 0])
    assert taken.tolist() == expected
    assert len(rest) + len(part) == len(LABELS)


def test_count_draws_exactly_and_smaller_draws_are_inside_larger_ones() -> None:
    labels = np.repeat(np.arange(3), 80)
    rest, test = cut_count(labels, 20, 5, SplitPurpose.TEST, NAMES[:3], "test_per_class")
    assert np.bincount(labels[test]).tolist() == [20, 20, 20]
    drawn = {}
    for count in (30, 60):
        _, part = cut_count(
            labels[rest], count, 5, SplitPurpose.TRAIN, NAMES[:3], "train_per_class"
        )
        assert np.bincount(labels[rest][part]).tolist() == [count] * 3
        drawn[count] = set(rest[part])
    assert drawn[30] < drawn[60]
    assert drawn[60].isdisjoint(test)


def test_count_beyond_the_smallest_class_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"train_per_class=3: class 'd' has only 1 .* data.classes"):
        cut_count(LABELS, 3, 0, SplitPurpose.TRAIN, NAMES, "train_per_class")


def test_draws_depend_on_seed_purpose_and_class_alone() -> None:
    labels = np.repeat(np.arange(2), 50)

    def draw(seed: int, purpose: SplitPurpose, of: np.ndarray = labels) -> set[int]:
        return set(cut_fraction(of, 0.3, seed, purpose)[1].tolist())

    first = draw(0, SplitPurpose.VAL)
    assert first == draw(0, SplitPurpose.VAL)
    assert first != draw(1, SplitPurpose.VAL)
    assert first != draw(0, SplitPurpose.TEST)
    of_class_0 = {i for i in first if i < 50}
    assert {i + 50 for i in of_class_0} != first - of_class_0
    # more pictures of class 1 leave the draw from class 0 as it is
    more = draw(0, SplitPurpose.VAL, np.repeat(np.arange(2), (50, 90)))
    assert {i for i in more if i < 50} == of_class_0


def test_draws_are_the_same_for_ever() -> None:
    _, part = cut_fraction(np.repeat(np.arange(2), 8), 0.25, 0, SplitPurpose.VAL)
    assert part.tolist() == [6, 7, 9, 12]


def test_label_fraction_keeps_at_least_one_of_each() -> None:
    kept = keep_fraction(MIXED, 0.1, 0, SplitPurpose.LABELS)
    assert np.bincount(MIXED[kept]).tolist() == [10, 4, 1, 1]
    assert len(keep_fraction(MIXED, 1.0, 0, SplitPurpose.LABELS)) == len(MIXED)
