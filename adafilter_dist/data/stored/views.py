"""Prepared data seen otherwise: with other class numbers, or a few pictures of each split."""

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


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedSubset(Prepared):
    """Prepared data of which every split shows at most ``images`` pictures.

    They are evenly spaced, because stored sets are sorted by class.
    """

    images: int

    @staticmethod
    def of(prepared: Prepared, images: int) -> PreparedSubset:
        """The same data, thinned out."""
        same = {one.name: getattr(prepared, one.name) for one in fields(Prepared)}
        return PreparedSubset(**same, images=images)

    def split(self, name: SplitName) -> tuple[Path, Indices, Indices]:
        """As `Prepared.split`."""
        path, records, labels = super().split(name)
        count = min(self.images, len(records))
        taken = np.arange(count) * len(records) // max(count, 1)
        return path, records[taken], labels[taken]
