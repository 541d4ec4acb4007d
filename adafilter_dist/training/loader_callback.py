"""An evaluation loader that says before each batch that the run is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.stored.prepared import Domains


@dataclass
class LoaderWithCallback:
    """A split's batches; ``on_batch`` is called before each."""

    loader: EvalLoader
    on_batch: Callable[[], None]

    @property
    def total(self) -> int:
        """Samples over all ranks."""
        return self.loader.total

    @property
    def domains(self) -> Domains | None:
        """Of the whole split."""
        return self.loader.domains

    def __iter__(self) -> Iterator[MicroBatch]:
        for batch in self.loader:
            self.on_batch()
            yield batch

    @property
    def store_name(self) -> str:
        """The file that the pictures are in."""
        return self.loader.store_name

    def sparing(self, known: Callable[[NDArray[np.int64]], bool]) -> LoaderWithCallback:
        """As `EvalLoader.sparing`."""
        return replace(self, loader=self.loader.sparing(known))

    def records(self, index: Tensor) -> NDArray[np.int64]:
        """As `EvalLoader.records`."""
        return self.loader.records(index)

    def read(self, index: Tensor) -> MicroBatch:
        """As `EvalLoader.read`."""
        return self.loader.read(index)
