"""What the loaders hand out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor


@dataclass
class MicroBatch:
    """Samples whose statistics are taken together, on the CPU (in pinned memory for a GPU).

    ``images`` uint8 (m, 3, R, R) channels last, ``labels`` int64 (m,), ``index`` int64 (m,): each
    sample's position in its split; ``domain`` int64 (m,), None where the data have no domains.
    ``images`` is on the GPU where that decoded it, and empty where the loader was told that nobody
    needs it.
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

    With ``train.cache`` ``images`` are the activations of the frozen part, which the network takes
    inside ``skip()``; they are mixed already, and ``targets`` are what the mixed pictures are of:
    labels, or probabilities (n * m, classes).
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    count: int
    domain: Tensor | None = None
    targets: Tensor | None = None
    skip: Callable[[], AbstractContextManager[None]] = nullcontext
