"""From the loader to the network's input."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.ops.dtypes import accumulation_dtype


@dataclass(frozen=True)
class BatchTransfer:
    """How a batch becomes the network's input: normalisation, device, dtype and layout."""

    preprocess: Preprocess
    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = True

    def bring(self, parts: Sequence[MicroBatch]) -> DeviceBatch:
        """Micro-batches for one forward, in memory of their own."""
        brought = [
            to_device(part, self.preprocess, self.device, self.dtype, self.channels_last)
            for part in parts
        ]
        images, labels = zip(*brought, strict=True)
        index = [part.index for part in parts]
        domains = [
            part.domain.to(self.device, non_blocking=True)
            for part in parts
            if part.domain is not None
        ]
        domain = joined(domains) if domains else None
        return DeviceBatch(joined(images), joined(labels), joined(index), len(parts), domain)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other; a single one is returned as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
    exact = accumulation_dtype(dtype)
    pixels = on_device(batch.images, device)
    images = torch.empty(pixels.shape, dtype=exact, device=device, memory_format=layout)
    normalise(pixels, preprocess, images)
    return images.to(dtype), batch.labels.to(device, non_blocking=True)


def on_device(pixels: Tensor, device: torch.device) -> Tensor:
    """The loader's pixels on the device, for what is queued on the current stream."""
    if pixels.is_cuda:
        # Decoded there, in memory of another stream, which must not fill it anew before that.
        pixels.record_stream(torch.cuda.current_stream(pixels.device))
    return pixels.to(device, non_blocking=True)


def normalise(pixels: Tensor, preprocess: Preprocess, images: Tensor) -> None:
    """Write uint8 pixels (m, 3, R, R), normalised, into images of the same shape and device."""
    scale, shift = _constants(preprocess, images.device, images.dtype)
    images.copy_(pixels).mul_(scale).add_(shift)


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
