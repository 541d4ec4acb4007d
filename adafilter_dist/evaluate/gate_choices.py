"""How many filters of each layer are the fine-tuned ones, for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.evaluate.gate_groups import unpacked

_CHUNK = 1024  # pictures unpacked at once


@dataclass(frozen=True, eq=False)
class GateChoices:
    """``fine_tuned`` uint16 (n, L): how many of a layer's ``filters`` (L,) are fine-tuned ones.

    ``layers`` are the names, in order of execution.
    """

    layers: list[str]
    filters: NDArray[np.int64]
    fine_tuned: NDArray[np.uint16]

    @staticmethod
    def of(bits: NDArray[np.uint8], layers: list[str], widths: Sequence[int]) -> GateChoices:
        """From packed gates (n, bytes); ``widths`` is how many gates each layer has."""
        filters = np.asarray(widths, np.int64)
        starts = np.concatenate([[0], filters.cumsum()[:-1]])
        counts = np.zeros((len(bits), len(filters)), np.uint16)
        for first in range(0, len(bits), _CHUNK):
            gates = unpacked(bits[first : first + _CHUNK], int(filters.sum()))
            counts[first : first + _CHUNK] = np.add.reduceat(gates, starts, axis=1, dtype=np.uint16)
        return GateChoices(layers, filters, counts)

    def shares(self) -> NDArray[np.float64]:
        """(n, L): the share of a layer's filters that are fine-tuned, for each picture."""
        return self.fine_tuned / self.filters

    def reuse(self) -> NDArray[np.float64]:
        """(n,): the share of all filters that are the pre-trained ones, for each picture."""
        return 1 - self.fine_tuned.sum(axis=1, dtype=np.int64) / self.filters.sum()
