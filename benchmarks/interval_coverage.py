"""How often the 95 % intervals of a comparison contain the true difference, by simulation.

Two methods are right on a picture where a hidden margin is above zero: a constant of the method, an
effect of the seed, one of the picture that both share, one of the picture for each method, and the
rest. The true difference of accuracies is then known in closed form. docs/compare.md has the table.

    python benchmarks/interval_coverage.py --repeats 4000
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from bench.reporting import Column, Table
from numpy.typing import NDArray

from adafilter_dist.compare.statistics import bootstrap_interval, crossed_error, t_quantile

Floats = NDArray[np.float64]
Interval = Callable[[Floats], tuple[Floats, Floats]]
"""From differences (repeats, seeds, pictures) to the interval's centres and half widths."""


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the margin's parts; the rest has 1."""

    seed: float
    shared: float
    picture: float


SPREADS = {
    "seeds alone": Spread(0.2, 0.0, 0.0),
    "seeds and pictures": Spread(0.1, 2.0, 1.0),
    "pictures alone": Spread(0.0, 2.0, 1.0),
    "neither": Spread(0.0, 0.0, 0.0),
}
MARGINS = (1.5, 1.8)


def true_difference(spread: Spread) -> float:
    """Expected accuracy of the second method minus that of the first."""
    total = math.sqrt(1 + spread.seed**2 + spread.shared**2 + spread.picture**2)
    first, second = (NormalDist().cdf(margin / total) for margin in MARGINS)
    return second - first


def simulate(spread: Spread, repeats: int, seeds: int, pictures: int, seed: int) -> Floats:
    """Differences of correctness, second minus first: (repeats, seeds, pictures) of -1, 0 and 1."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return draw.standard_normal((repeats, *shape), dtype=np.float32)

    shared = spread.shared * normal(1, pictures)
    right = []
    for margin in MARGINS:
        effects = spread.seed * normal(seeds, 1) + spread.picture * normal(1, pictures)
        right.append(margin + shared + effects + normal(seeds, pictures) > 0)
    return right[1].astype(np.float64) - right[0]


def _crossed(differences: Floats) -> tuple[Floats, Floats]:
    mean, error, df = crossed_error(differences)
    return mean, t_quantile(df) * error


def _crossed_few(differences: Floats) -> tuple[Floats, Floats]:
    mean, error, _ = crossed_error(differences)
    return mean, t_quantile(differences.shape[1] - 1) * error


def _over_seeds(differences: Floats) -> tuple[Floats, Floats]:
    by_seed = differences.mean(axis=-1)
    seeds = by_seed.shape[-1]
    half = t_quantile(seeds - 1) * by_seed.std(axis=-1, ddof=1) / math.sqrt(seeds)
    return by_seed.mean(axis=-1), half


def _over_pictures(differences: Floats) -> tuple[Floats, Floats]:
    by_picture = differences.mean(axis=-2)
    pictures = by_picture.shape[-1]
    half = t_quantile(pictures - 1) * by_picture.std(axis=-1, ddof=1) / math.sqrt(pictures)
    return by_picture.mean(axis=-1), half


def _bootstrap(differences: Floats) -> tuple[Floats, Floats]:
    ends = np.array([bootstrap_interval(one, 1000) for one in differences])
    return ends.mean(axis=-1), (ends[:, 1] - ends[:, 0]) / 2


INTERVALS: dict[str, Interval] = {
    "t, crossed": _crossed,
    "t, crossed, seeds - 1": _crossed_few,
    "t over seeds": _over_seeds,
    "t over pictures": _over_pictures,
    "bootstrap": _bootstrap,
}


def coverage(interval: Interval, differences: Floats, truth: float) -> tuple[float, float]:
    """Share of the intervals that contain the truth, and their mean half width."""
    centre, half = interval(differences)
    return float((np.abs(centre - truth) <= half).mean()), float(half.mean())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=4000, help="comparisons simulated")
    parser.add_argument("--pictures", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    options = parser.parse_args(argv)
    table = Table(
        f"share of {options.repeats:,} simulated 95 % intervals with the true difference in them, "
        "and their mean half width in points",
        [
            *(Column("spread of"), Column("seeds", 0), Column("pictures", 0)),
            *(Column(name) for name in INTERVALS),
        ],
    )
    for name, spread in SPREADS.items():
        truth = true_difference(spread)
        for seeds in options.seeds:
            for pictures in options.pictures:
                # In portions, for the memory.
                coverages: dict[str, list[tuple[float, float]]] = {one: [] for one in INTERVALS}
                portions = max(1, options.repeats * seeds * pictures // 5_000_000)
                for portion in range(portions):
                    repeats = options.repeats // portions
                    each = simulate(spread, repeats, seeds, pictures, portion)
                    for one, interval in INTERVALS.items():
                        coverages[one].append(coverage(interval, each, truth))
                means = {one: np.mean(values, axis=0) for one, values in coverages.items()}
                cells = [
                    f"{100 * share:.1f} (± {100 * half:.2f})" for share, half in means.values()
                ]
                table.add(name, seeds, pictures, *cells)
    table.print_markdown()


if __name__ == "__main__":
    main()
