"""A small evaluation set of real photographs, shared out over ranks, for the tests of measuring."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.models.backbone.preprocess import Preprocess
from tests.shared.real_pictures import thumbnails

SIDE = 32
PREPROCESS = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", SIDE, SIDE)


@cache
def pictures() -> Tensor:
    """uint8 (40, 3, 32, 32): the thumbnails, in order of their names."""
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in thumbnails()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


class Shared:
    """Batch b of ``batch_size`` pictures goes to rank b modulo world size; the tail is short."""

    def __init__(
        self,
        labels: Tensor,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        images: Tensor | None = None,
        domains: Domains | None = None,
    ) -> None:
        self._labels = labels
        self._images = pictures()[: len(labels)] if images is None else images
        self._batch = batch_size
        self._rank, self._world_size = rank, world_size
        self.total = len(labels)
        self.domains = domains

    def __iter__(self) -> Iterator[MicroBatch]:
        starts = range(self._batch * self._rank, self.total, self._batch * self._world_size)
        for start in starts:
            index = torch.arange(start, min(start + self._batch, self.total))
            yield MicroBatch(images=self._images[index], labels=self._labels[index], index=index)
