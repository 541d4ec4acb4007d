"""Reading without FFCV, with what torchvision brings: Pillow decodes in a pool of threads.

torchvision's own JPEG decoder gives the same pixels as fast, but is to be removed.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.backend import Kind, ReadPlan
from adafilter_dist.data.loading.resize import resize_box
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.data.stored.store import Store


class TorchvisionBackend:
    """Decodes whole micro-batches in threads, a few ahead of the one asked for."""

    kind: Kind = "torchvision"

    def __init__(self, store: Store, size: int, workers: int, pin: bool) -> None:
        self._store = store
        self._size = size
        self._workers = workers
        self._pin = pin

    def read(self, plan: ReadPlan) -> Generator[Tensor, None, None]:
        """See :class:`~adafilter_dist.data.loading.backend.Backend`."""

        def micro_batch(number: int) -> Tensor:
            boxes = plan.boxes(plan.samples[number])
            return self._micro_batch(plan.records[number], boxes)

        with WorkerPool(self._workers) as pool:
            yield from pool.map(micro_batch, range(len(plan.records)), ahead=self._workers + 1)

    def _micro_batch(self, records: NDArray[np.int64], boxes: NDArray[np.int64]) -> Tensor:
        shape = (len(records), self._size, self._size, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
        pixels = images.numpy()
        for k, (record, box) in enumerate(zip(records, boxes, strict=True)):
            picture = self._store.read(int(record))
            pixels[k] = resize_box(picture, box[:4], self._size, mirrored=bool(box[4]))
        return images.permute(0, 3, 1, 2)
