"""Means over pixels that one layer's kernel has computed and the next layer's gate looks at."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class PooledMeans:
    """Remembers means over pixels (N, C) that fused layers computed with outputs (N, C, H, W).

    They save the gate a pass.

    A mean is only used for the same tensor object, unchanged since `add`. For any other tensor, or
    after a write into this one, the mean is computed.
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
        kept = None if torch.compiler.is_compiling() else self._means.get(id(x))
        if kept is not None:
            tensor, version, mean = kept
            if tensor() is x and x._version == version:
                return mean if mean.dtype == dtype else mean.to(dtype)
        return x.mean((2, 3), dtype=dtype)

    # Copies start empty: after a failed forward, tensors of its graph may still be in here.
    def __deepcopy__(self, memo: dict[int, Any]) -> PooledMeans:
        return PooledMeans()

    def __reduce__(self) -> tuple[type[PooledMeans], tuple[()]]:
        return PooledMeans, ()
