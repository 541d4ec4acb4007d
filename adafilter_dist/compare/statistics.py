"""Intervals and p-values of a comparison: over seeds, and over seeds and test pictures together.

docs/compare.md says in words what is estimated, and how often the intervals contain the truth
(benchmarks/interval_coverage.py measures it). All of it is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.errors import UserError

try:
    import scipy  # scipy.stats, which takes a second, is imported where it is first used
except ImportError as error:
    raise UserError(
        "statistics of a comparison need SciPy: pip install 'adafilter-dist[compare]'"
    ) from error

LEVEL = 0.95
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval and the two-sided p-value of 0, all of the same t statistic.

    ``error`` is the standard error, ``df`` the degrees of freedom. ``low``, ``high``, ``p`` are
    None with fewer than two seeds: nothing is then known of the spread between seeds.
    """

    value: float
    error: float | None
    df: float | None
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    pictures: int | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None for what is not finite, as the loss of a run that diverged."""
        rows: dict[str, Any] = dict(self.__dict__)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in rows.items()
        }


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t interval; ValueError without a value."""
    if not len(values):
        raise ValueError("a mean needs at least one value")
    each = np.asarray(values, np.float64)
    seeds = len(each)
    if seeds == 1:
        return _estimate(float(each[0]), None, None, 1)
    error = float(each.std(ddof=1)) / seeds**0.5
    return _estimate(float(each.mean()), error, seeds - 1, seeds)


def paired_difference(
    one: Sequence[Bools], other: Sequence[Bools], *, same_pictures: bool
) -> Estimate:
    """Accuracy of ``one`` minus that of ``other``, paired by seed and picture.

    Both hold for each seed (n,) whether each test picture was right, seeds in the same order, at
    least one. ``same_pictures``: picture i is the same one under every seed, so that its difficulty
    is shared by them (`crossed_error`); otherwise each seed has test pictures of its own, and the
    spread between seeds holds all there is. The standard error is then not less than what the
    pictures alone give: seeds that happen to agree leave these uncertain. ValueError where lengths
    do not fit.
    """
    each = [a.astype(np.float64) - b for a, b in zip(one, other, strict=True)]
    if not same_pictures or len(each) == 1:
        over_seeds = mean_over_seeds([float(d.mean()) for d in each])
        pictures = sum(len(d) for d in each)
        if over_seeds.error is None or over_seeds.df is None:
            return replace(over_seeds, pictures=pictures)
        of_pictures = sum(float(d.var()) / len(d) for d in each) ** 0.5 / len(each)
        error = max(over_seeds.error, of_pictures)
        return _estimate(over_seeds.value, error, over_seeds.df, len(each), pictures)
    differences = np.stack(each)
    value, error, df = crossed_error(differences)
    return _estimate(float(value), float(error), float(df), *differences.shape)


def crossed_error(differences: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, standard error and degrees of freedom over seeds and pictures: (..., seeds, pictures).

    A difference is taken as mean + effect of the seed + effect of the picture + rest, as in a
    two-way layout with random effects and one observation a cell. With mean squares MS the variance
    of the mean is (MS of seeds + MS of pictures - MS of the rest) / (seeds x pictures), and not
    less than either of the first two alone; degrees of freedom by Satterthwaite (Biometrics
    Bulletin 2, 1946). For the variance of crossed samples: Owen, Annals of Applied Statistics 1,
    2007. At least two seeds and two pictures.
    """
    seeds, pictures = differences.shape[-2:]
    cells = seeds * pictures
    by_seed, by_picture = differences.mean(axis=-1), differences.mean(axis=-2)
    mean = by_seed.mean(axis=-1)
    of_seeds = pictures * by_seed.var(axis=-1, ddof=1)
    of_pictures = seeds * by_picture.var(axis=-1, ddof=1)
    total = ((differences - mean[..., None, None]) ** 2).sum(axis=(-2, -1))
    squares = total - (seeds - 1) * of_seeds - (pictures - 1) * of_pictures
    rest = np.maximum(squares, 0) / ((seeds - 1) * (pictures - 1))

    variance = np.maximum.reduce([of_seeds + of_pictures - rest, of_seeds, of_pictures])
    spread = (
        of_seeds**2 / (seeds - 1)
        + of_pictures**2 / (pictures - 1)
        + rest**2 / ((seeds - 1) * (pictures - 1))
    )
    df = np.divide(variance**2, spread, out=np.full_like(mean, seeds - 1.0), where=spread > 0)
    return mean, np.sqrt(variance / cells), np.maximum(df, seeds - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    Those below 0.05 are wrong, one or more of them, in at most 5 % of comparisons.
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[int(index)] = least
    return corrected


@dataclass(frozen=True)
class Rank:
    """1 is the best accuracy, equal ones share the mean; ``low`` to ``high`` is the interval."""

    value: float
    low: int
    high: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


def ranks(means: Mapping[str, float], pairs: Mapping[tuple[str, str], Estimate]) -> dict[str, Rank]:
    """Ranks by mean accuracy, with 95 % intervals that all hold together.

    ``pairs`` holds the difference of the first to the second for every two methods, once. A
    method's interval leaves out the ranks that those methods take that are better, or worse, with
    p < 0.05 after Holm's correction over all pairs (Mogstad, Romano, Shaikh and Wilhelm, Review of
    Economic Studies 91, 2024).
    """
    known = [pair for pair, estimate in pairs.items() if estimate.p is not None]
    corrected = holm([pairs[pair].p or 0.0 for pair in known])
    better, worse = dict.fromkeys(means, 0), dict.fromkeys(means, 0)
    for (one, other), p in zip(known, corrected, strict=True):
        if p < 1 - LEVEL:
            first_wins = pairs[one, other].value > 0
            winner, loser = (one, other) if first_wins else (other, one)
            better[loser] += 1
            worse[winner] += 1
    places = scipy.stats.rankdata([-value for value in means.values()])
    return {
        name: Rank(float(place), 1 + better[name], len(means) - worse[name])
        for name, place in zip(means, places, strict=True)
    }


def bootstrap_interval(differences: Floats, resamples: int = 10_000) -> tuple[float, float]:
    """The middle 95 % of the mean over resampled seeds and resampled pictures, crossed.

    ``differences`` is (seeds, pictures). Each resample draws as many seeds and as many pictures,
    with replacement, and takes the mean over all their cells. With few seeds it is too narrow (it
    knows no t quantiles), and stands beside the t interval only to be compared with.
    """
    seeds, pictures = differences.shape
    draw = np.random.default_rng(0)
    # Pictures with the same differences under all seeds are drawn by their number.
    patterns, counts = np.unique(differences, axis=1, return_counts=True)
    of_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    of_pictures = draw.multinomial(pictures, counts / pictures, size=resamples) / pictures
    means = np.einsum("rs,sp,rp->r", of_seeds, patterns, of_pictures, optimize=True)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def t_quantile(df: float | Floats) -> Floats:
    """The two-sided 95 % quantile of Student's t."""
    return np.asarray(scipy.stats.t.ppf((1 + LEVEL) / 2, df), np.float64)


def _estimate(
    value: float, error: float | None, df: float | None, seeds: int, pictures: int | None = None
) -> Estimate:
    if error is None or df is None:
        return Estimate(value, None, None, None, None, None, seeds, pictures)
    half = float(t_quantile(df)) * error
    if error == 0:
        p = 1.0 if value == 0 else 0.0
    else:
        p = float(2 * scipy.stats.t.sf(abs(value) / error, df))
    return Estimate(value, error, df, value - half, value + half, p, seeds, pictures)
