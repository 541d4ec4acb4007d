"""What a training loader asks of the code that decodes for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["numba", "ffcv", "torchvision", "nvjpeg"]
SAME_PIXELS: frozenset[str] = frozenset({"numba", "ffcv"})
"""Kinds of `Backend` that give the same pixels to the bit."""

Boxes = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True)
class ReadPlan:
    """What to read: samples (micro-batches, m), where each lies in the store, how it is cropped.

    ``boxes`` maps samples (n,) to (n, 5): top, left, height, width, mirrored or not. Backends call
    it from any thread, for what they read next.
    """

    samples: NDArray[np.int64]
    records: NDArray[np.int64]
    boxes: Boxes


class Backend(Protocol):
    """Decodes, crops and scales records of a store."""

    kind: Kind

    def read(self, plan: ReadPlan) -> Generator[Tensor, None, None]:
        """Micro-batches of the plan in order: uint8 (m, 3, R, R), channels last.

        On the CPU, or on the device that trains; what was computed there for them is done.

        Closing the generator ends all work and joins what was started. UserError where a record
        cannot be decoded.
        """
        ...
