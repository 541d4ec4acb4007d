"""What the loaders hand out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class MicroBatch:
    """Samples whose statistics are taken together, on the CPU (in pinned memory for a GPU).

    ``images`` uint8 (m, 3, R, R) channels last, ``labels`` int64 (m,), ``index`` int64 (m,): each
    sample's position in its split; ``domain`` int64 (m,), None where the data have no domains.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    domain: Tensor | None = None


@dataclass
class DeviceBatch:
    """The micro-batches of one forward, one after the other, on the device.

    ``images`` (n * m, 3, R, R) normalised, ``labels`` (n * m,) and ``domain`` (n * m,), None where
    the data have no domains, are on the device, ``index`` (n * m,) on the CPU; ``count`` is n.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    count: int
    domain: Tensor | None = None
