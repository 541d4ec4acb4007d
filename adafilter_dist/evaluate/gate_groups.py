"""Gates by group of pictures (class or domain): means, variance between and within, information.

All of it follows from two counts: how many pictures a group has, and how many of them chose each
fine-tuned filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CHUNK = 1024  # pictures unpacked at once


def unpacked(bits: NDArray[np.uint8], filters: int) -> NDArray[np.uint8]:
    """Gates (n, filters), one byte each, of gates packed eight to the byte."""
    return np.unpackbits(bits, axis=1, count=filters)


@dataclass(frozen=True)
class GroupCounts:
    """``chosen`` int32 (G, filters): pictures of a group with gate 1; ``sizes`` int64 (G,)."""

    chosen: NDArray[np.int32]
    sizes: NDArray[np.int64]

    @staticmethod
    def of(
        bits: NDArray[np.uint8], filters: int, groups: NDArray[np.int64], number: int
    ) -> GroupCounts:
        """Count packed gates (n, bytes); ``groups`` (n,) in 0..number-1."""
        chosen = np.zeros((number, filters), dtype=np.int32)
        for group in range(number):
            rows = np.flatnonzero(groups == group)
            for start in range(0, len(rows), _CHUNK):
                part = unpacked(bits[rows[start : start + _CHUNK]], filters)
                chosen[group] += part.sum(axis=0, dtype=np.int32)
        return GroupCounts(chosen, np.bincount(groups, minlength=number))

    @property
    def n(self) -> int:
        """Pictures."""
        return int(self.sizes.sum())

    @property
    def means(self) -> Floats:
        """(filters,): each filter's mean gate over all pictures."""
        return self.chosen.sum(axis=0, dtype=np.int64) / self.n

    def mean_of(self, group: int | NDArray[np.int64]) -> Floats:
        """(filters,) or (m, filters): each filter's mean gate in a group, or in each of several."""
        return self.chosen[group] / self.sizes[group, ..., None]

    def variances(self) -> tuple[Floats, Floats] | None:
        """(between, within) groups, each (filters,): together a gate's variance over pictures.

        Both without bias, as in an analysis of variance: within = sum n_g p_g (1 - p_g) / (n - G),
        between = n p (1 - p) / (n - 1) - within. So ``between`` is 0 on average, and may be a
        little below, for gates that do not depend on the group. None where no group has two
        pictures.
        """
        groups = self._occurring()
        n = self.n
        if n <= len(groups):
            return None
        within = np.zeros(self.chosen.shape[1])
        for group in groups:
            p = self.mean_of(group)
            within += self.sizes[group] * p * (1 - p) / (n - len(groups))
        p = self.means
        return n * p * (1 - p) / (n - 1) - within, within

    def information(self) -> Floats:
        """(filters,): mutual information of gate and group, bits; at most :meth:`entropy`.

        Gates that do not depend on the group have about (G - 1) / (2 n ln 2) bits, not 0.
        """
        left = np.zeros(self.chosen.shape[1])
        for group in self._occurring():
            left += self.sizes[group] / self.n * _entropy(self.mean_of(group))
        return _entropy(self.means) - left

    def entropy(self) -> float:
        """Entropy of the group of a picture, bits."""
        weights = self.sizes[self.sizes > 0] / self.n
        return float(-(weights * np.log2(weights)).sum())

    def _occurring(self) -> list[int]:
        return [group for group, size in enumerate(self.sizes) if size]


def _entropy(p: Floats) -> Floats:
    """Entropy of a bit, in bits: (...) -> (...)."""
    total = np.zeros_like(p)
    for q in (p, 1 - p):
        some = q > 0
        total[some] -= q[some] * np.log2(q[some])
    return total
