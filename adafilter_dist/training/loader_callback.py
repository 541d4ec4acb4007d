"""An evaluation loader that says before each batch that the run is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
