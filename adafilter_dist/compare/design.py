"""The points that every contender is tried at: one low-discrepancy design for all of them.

SciPy's Sobol sequence, scrambled with a fixed seed. With 2^k points each part of 1/2^k of every
key's range holds exactly one of them, which neither random points nor a grid of several keys do.
Optuna's QMC sampler gives the same points (it calls SciPy's), but wants a study with a storage
beside the run folders; a sequence of points needs none, and can be kept in the plan.
"""

from __future__ import annotations

import math
import warnings

from adafilter_dist.errors import UserError

Point = tuple[float, ...]

DIMENSIONS = 4
"""Keys that a contender may search, at most; with fewer it takes the first coordinates."""

_SEED = 20_260_101
_DIGITS = 6


def sobol_points(trials: int) -> tuple[Point, ...]:
    """``trials`` points of the unit cube, always the same ones; UserError without SciPy."""
    try:
        from scipy.stats import qmc
    except ImportError:
        raise UserError(
            "the trials of a comparison are drawn by SciPy, which is not installed: "
            "pip install 'adafilter-dist[compare]'"
        ) from None
    sequence = qmc.Sobol(DIMENSIONS, scramble=True, rng=_SEED)
    # Drawn as a power of two, and cut: SciPy warns of other numbers.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = sequence.random_base2(max(0, math.ceil(math.log2(max(1, trials)))))
    return tuple(tuple(round(float(u), _DIGITS) for u in point) for point in points[:trials])
