"""Statistics of a comparison against closed forms and SciPy's own tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy

from adafilter_dist.compare.statistics import (
    Estimate,
    bootstrap_interval,
    holm,
    mean_over_seeds,
    paired_difference,
    ranks,
)

SEEDS, PICTURES = 5, 400


def right(margin: float, seed: int, spread: float = 0.1, shared: int = 7) -> list[np.ndarray]:
    """Correctness of a method; the pictures' difficulty is the same for equal ``shared``."""
    draw, pictures = np.random.default_rng(seed), np.random.default_rng(shared)
    difficulty = 2 * pictures.standard_normal(PICTURES)
    effects = margin + spread * draw.standard_normal((SEEDS, 1)) + difficulty
    return list(effects + draw.standard_normal((SEEDS, PICTURES)) > 0)


def test_the_mean_over_seeds_is_students() -> None:
    values = [0.71, 0.74, 0.69, 0.73]
    estimate = mean_over_seeds(values)
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    assert estimate.value == pytest.approx(0.7175) and estimate.seeds == 4
    one = mean_over_seeds([0.7])
    assert one.value == 0.7 and one.low is one.high is one.p is None and one.half is None
    with pytest.raises(ValueError, match="at least one"):
        mean_over_seeds([])


def test_with_pictures_of_its_own_each_seed_is_one_value() -> None:
    one, other = right(1.0, 1), right(0.5, 2)
    estimate = paired_difference(one, other, same_pictures=False)
    known = scipy.stats.ttest_rel([each.mean() for each in one], [each.mean() for each in other])
    assert estimate.p == pytest.approx(known.pvalue)
    assert estimate.low == pytest.approx(known.confidence_interval().low)
    assert (estimate.seeds, estimate.pictures) == (SEEDS, SEEDS * PICTURES)


def test_seeds_that_happen_to_agree_leave_the_pictures_uncertain() -> None:
    # Each seed has 3 of its 4 pictures for the method: the seeds' own spread is 0.
    one = [np.array([True, True, True, False]), np.array([False, True, True, True])]
    none = [np.zeros(4, bool)] * 2
    estimate = paired_difference(one, none, same_pictures=False)
    variance = 3 / 16  # of 1, 1, 1, 0
    assert estimate.error == pytest.approx((2 * variance / 4) ** 0.5 / 2)
    assert estimate.df == 1 and estimate.p is not None and 0.05 < estimate.p < 1


def test_crossed_seeds_and_pictures_by_hand() -> None:
    # Differences [[1, 0, 0], [1, 1, 0]]: mean 1/2, mean squares by the textbook's sums.
    one = [np.array([True, False, False]), np.array([True, True, False])]
    none = [np.zeros(3, bool)] * 2
    of_seeds = 3 * ((1 / 3 - 1 / 2) ** 2 + (2 / 3 - 1 / 2) ** 2) / 1
    of_pictures = 2 * ((1 - 1 / 2) ** 2 + 0 + (0 - 1 / 2) ** 2) / 2
    rest = (6 * 1 / 4 - of_seeds - 2 * of_pictures) / 2
    variance = of_seeds + of_pictures - rest
    estimate = paired_difference(one, none, same_pictures=True)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.error == pytest.approx((variance / 6) ** 0.5)
    df = variance**2 / (of_seeds**2 + of_pictures**2 / 2 + rest**2 / 2)
    assert estimate.df == pytest.approx(df)
    half = scipy.stats.t.ppf(0.975, df) * (variance / 6) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_where_pictures_do_not_matter_it_is_the_paired_test_over_seeds() -> None:
    # The same difference on every picture of a seed but for noise: only seeds are left.
    draw = np.random.default_rng(3)
    rates = np.array([0.2, 0.5, 0.4, 0.9, 0.6])
    one = [draw.random(4000) < rate for rate in rates]
    none = [np.zeros(4000, bool)] * 5
    crossed = paired_difference(one, none, same_pictures=True)
    nested = paired_difference(one, none, same_pictures=False)
    assert crossed.half == pytest.approx(nested.half, rel=0.01)
    assert crossed.df == pytest.approx(4, rel=0.01)


def test_a_method_does_not_differ_from_itself() -> None:
    one = right(1.0, 1)
    estimate = paired_difference(one, one, same_pictures=True)
    assert (estimate.value, estimate.low, estimate.high, estimate.p) == (0, 0, 0, 1)
    assert bootstrap_interval(np.zeros((SEEDS, PICTURES))) == (0, 0)


def test_pairs_tell_more_than_two_separate_groups() -> None:
    one, other = right(1.0, 1), right(0.9, 2)
    paired = paired_difference(one, other, same_pictures=True)
    # The same accuracies, the pictures of one shuffled: nothing is shared.
    shuffled = [each[np.random.default_rng(5).permutation(PICTURES)] for each in other]
    unpaired = paired_difference(one, shuffled, same_pictures=True)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.half is not None and unpaired.half is not None
    assert paired.half < 0.7 * unpaired.half


def test_one_seed_has_a_difference_and_no_interval() -> None:
    estimate = paired_difference(right(1.0, 1)[:1], right(0.5, 2)[:1], same_pictures=True)
    assert estimate.value > 0 and estimate.low is estimate.p is None
    assert (estimate.seeds, estimate.pictures) == (1, PICTURES)


def test_the_bootstrap_is_the_plain_one_over_seeds_and_pictures() -> None:
    differences = np.stack(right(1.0, 1)).astype(float) - np.stack(right(0.5, 2))
    low, high = bootstrap_interval(differences)
    assert (low, high) == bootstrap_interval(differences)
    draw = np.random.default_rng(11)
    plain = [
        differences[draw.integers(SEEDS, size=SEEDS)][:, draw.integers(PICTURES, size=PICTURES)]
        for _ in range(3000)
    ]
    means = [resample.mean() for resample in plain]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.006)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    # A p-value without rivals stays; ties keep their order.
    assert holm([0.04]) == [0.04] and holm([0.02, 0.02]) == [0.04, 0.04]


def test_ranks_leave_out_what_is_ruled_out() -> None:
    methods = {"a": right(3.0, 1), "b": right(1.0, 2), "c": right(1.0, 3), "d": right(-1.0, 4)}
    means = {name: float(np.mean(each)) for name, each in methods.items()}
    pairs = {
        (one, other): paired_difference(methods[one], methods[other], same_pictures=True)
        for one, other in itertools.combinations(methods, 2)
    }
    found = ranks(means, pairs)
    assert (found["a"].value, found["a"].low, found["a"].high) == (1, 1, 1)
    assert {found["b"].value, found["c"].value} == {2, 3}
    assert (found["b"].low, found["b"].high) == (found["c"].low, found["c"].high) == (2, 3)
    assert (found["d"].value, found["d"].low, found["d"].high) == (4, 4, 4)
    # Nothing known of the spread, nothing ruled out; equal accuracies share a rank.
    unknown = Estimate(0.0, None, None, None, None, None, 1)
    same = ranks({"a": 0.5, "b": 0.5}, {("a", "b"): unknown})
    assert [(r.value, r.low, r.high) for r in same.values()] == [(1.5, 1, 2)] * 2
