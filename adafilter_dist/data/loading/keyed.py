"""Random numbers by key: what is drawn depends on what it is for, and on nothing drawn before.

Only integer arithmetic and numpy's guaranteed bit streams are used, so that the numbers are the
same on every machine and numpy release.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Purpose(enum.IntEnum):
    """What a draw is for; each purpose has streams of its own."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    POLICY = 4
    ERASING = 5
    MIXING = 6


def sequence(purpose: Purpose, seed: int, *position: int) -> np.random.SeedSequence:
    """Seed sequence of a purpose at a position such as (epoch,) or (step, micro-batch).

    Each position must be below 2**32.
    """
    # The seed comes last: it may take two words, and trailing zero words would not count.
    return np.random.SeedSequence([purpose, *position, seed])


def raw_words(purpose: Purpose, seed: int, *position: int, count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit words of the stream at a position."""
    return np.random.Philox(sequence(purpose, seed, *position)).random_raw(count)


def permutation(purpose: Purpose, seed: int, *position: int, count: int) -> NDArray[np.int64]:
    """Random order of ``range(count)``."""
    words = raw_words(purpose, seed, *position, count=count)
    return np.argsort(words, kind="stable").astype(np.int64)


def uniforms(
    purpose: Purpose, seed: int, epoch: int, index: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Numbers in [0, 1), shape (len(index), count); a row depends on its own index alone."""
    key = sequence(purpose, seed, epoch).generate_state(1, np.uint64)
    rows = _mix(key + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = _mix(rows[:, None] + columns[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014); wraps modulo 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
