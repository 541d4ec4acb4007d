"""Means over pixels that came with the activations, so that the gate need not read these again."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class KnownMeans:
    """The mean over its pixels (N, C) of each activation (N, C, H, W) that was added.

    A mean is that of the very tensor it was added with, as it was then: for a copy, or where
    somebody wrote into it, it is computed.
    """

    def __init__(self) -> None:
        self._means: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def clear(self) -> None:
        """Forget all."""
        self._means.clear()

    def add(self, x: Tensor, mean: Tensor) -> None:
        """Note the mean of x."""
        # A compiler fuses the mean itself, and knows no weak references.
        if not torch.compiler.is_compiling() and not x.is_inference():
            self._means[id(x)] = (weakref.ref(x), x._version, mean)

    def of(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean of x over its pixels, in `dtype`."""
        if not torch.compiler.is_compiling() and id(x) in self._means:
            known, version, mean = self._means[id(x)]
            if known() is x and x._version == version:
                return mean.to(dtype)
        return x.mean((2, 3), dtype=dtype)

    # Where a forward failed halfway, tensors of its graph are still here.
    def __deepcopy__(self, memo: dict[int, Any]) -> KnownMeans:
        return KnownMeans()

    def __reduce__(self) -> tuple[type[KnownMeans], tuple[()]]:
        return KnownMeans, ()
