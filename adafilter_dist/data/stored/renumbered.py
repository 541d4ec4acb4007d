"""Prepared data whose classes have the numbers that a trained model gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from adafilter_dist.data.sources.split import Indices, SplitName
from adafilter_dist.data.stored.prepared import Prepared


@dataclass(frozen=True, eq=False, kw_only=True)
class Renumbered(Prepared):
    """Prepared data with other labels: ``numbers[old]`` is the new one.

    Splits are cut by the old ones, so that they hold the same pictures.
    """

    numbers: Indices

    def split(self, name: SplitName) -> tuple[Path, Indices, Indices]:
        """As `Prepared.split`."""
        path, records, labels = super().split(name)
        return path, records, self.numbers[labels]


def in_classes(prepared: Prepared, classes: Sequence[str]) -> Prepared:
    """The same pictures with labels that index ``classes``: the same names in any order."""
    if list(classes) == list(prepared.classes):
        return prepared
    same = {one.name: getattr(prepared, one.name) for one in fields(Prepared)}
    numbers = np.array([classes.index(name) for name in prepared.classes], np.int64)
    return Renumbered(**{**same, "classes": list(classes)}, numbers=numbers)
