"""Some pictures of each split, spread evenly over it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from adafilter_dist.data.sources.split import Indices
from adafilter_dist.data.stored.prepared import Prepared, SplitName


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
