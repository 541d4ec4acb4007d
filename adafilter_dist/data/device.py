"""From the loader to the network's input."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from adafilter_dist.data.batch import MicroBatch
from adafilter_dist.models.preprocess import Preprocess


def to_device(
    batch: MicroBatch,
    preprocess: Preprocess,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> tuple[Tensor, Tensor]:
    """(images (m, 3, R, R) normalised, labels (m,)) on the device.

    Bytes travel, a quarter of the floats, and nobody waits for them where they are pinned. They are
    normalised there, in float64 where that is asked for, else in float32.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = _constants(preprocess, device, exact)
    images = batch.images.to(device, non_blocking=True)
    normalised = images.to(exact, memory_format=layout).mul_(scale).add_(shift)
    return normalised.to(dtype), batch.labels.to(device, non_blocking=True)


@functools.lru_cache(maxsize=16)
def _constants(
    preprocess: Preprocess, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(1/255 x - mean) / std as one multiplication and one addition: two of (1, 3, 1, 1)."""
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)
    std = torch.tensor(preprocess.std, dtype=torch.float64)
    scale, shift = 1 / (255 * std), -mean / std
    return (
        scale.to(device, dtype).view(1, 3, 1, 1),
        shift.to(device, dtype).view(1, 3, 1, 1),
    )
