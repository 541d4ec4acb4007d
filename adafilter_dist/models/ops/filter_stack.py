"""The stacked filters of all layers, brought up to date in one operation a forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.ops import device_kind


class FilterStack:
    """Trained and frozen filters of each layer as one tensor (2C, C_in, kh, kw), for a GPU.

    A layer is known from its first forward on; `refresh` copies the filters of all layers that
    are known, in the dtype of autocast, if any. Copies and pickles of a stack know no layer.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: list[Any] = []
        self._key: list[Any] = []
        self._stacked: dict[int, Tensor] = {}
        self._halves: list[Tensor] = []
        self._made: list[tuple[list[Any], dict[int, Tensor], list[Tensor]]] = []
        self._fresh = False

    @torch.no_grad()
    def refresh(self, device: torch.device) -> None:
        """Copy the filters as they are now: they stay so until the forward ends."""
        if not self._layers:
            return
        cast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if cast else None
        # Weights that lie where they lay are those of the last forward.
        places = [dtype, *[weight.data_ptr() for weight, _ in self._layers.values()]]
        if places != self._places:
            self._places = places
            self._look_up(dtype)
        sources = [each for pair in self._layers.values() for each in pair]
        torch._foreach_copy_(self._halves, sources)
        self._fresh = True

    def _look_up(self, dtype: torch.dtype | None) -> None:
        """Memory for the layers as they are; in `dtype`, or that of their weights."""
        kinds = {weight.dtype for weight, _ in self._layers.values()}
        if dtype is None:
            dtype = kinds.pop() if len(kinds) == 1 else torch.float32
        key = [dtype, *((i, w.shape, w.stride(), w.device) for i, (w, _) in self._layers.items())]
        if key != self._key:
            self._take(key, dtype)

    def _take(self, key: list[Any], dtype: torch.dtype) -> None:
        """Memory for layers and a dtype like these.

        What was made for others is kept: a CUDA graph that was recorded writes and reads it.
        """
        self._key = key
        for made in self._made:
            if made[0] == key:
                _, self._stacked, self._halves = made
                return
        self._allocate(dtype)
        self._made.append((key, self._stacked, self._halves))

    def _allocate(self, dtype: torch.dtype) -> None:
        self._stacked, self._halves = {}, []
        for index, (weight, _) in self._layers.items():
            shape = (2 * len(weight), *weight.shape[1:])
            stacked = torch.empty_strided(shape, weight.stride(), dtype=dtype, device=weight.device)
            self._stacked[index] = stacked
            # `data` counts its versions apart: a layer keeps the stacked filters for backward, and
            # another forward writes the same values there. Should the weights have changed until
            # then, autograd finds that in the weights, which a layer keeps too.
            self._halves += stacked.data.split(len(weight))

    def of(self, index: int, weight: Tensor, frozen: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The stacked filters of layer `index`; None where they have to be joined there."""
        if not device_kind.on_gpu(weight) or torch.compiler.is_compiling():
            return None
        known = self._layers.get(index)
        if known is not None and known[0] is weight and known[1] is frozen:
            stacked = self._stacked.get(index) if self._fresh else None
            return stacked if stacked is not None and stacked.dtype == dtype else None
        # DeepSpeed's ZeRO-3 brings weights when modules are called.
        if not hasattr(weight, "ds_id") and weight.stride() == frozen.stride():
            self._layers[index] = weight, frozen
            self._fresh = False
        return None

    def forget(self) -> None:
        """The forward has ended: filters may change."""
        self._fresh = False

    def __deepcopy__(self, memo: dict[int, Any]) -> FilterStack:
        return FilterStack()

    def __reduce__(self) -> tuple[type[FilterStack], tuple[()]]:
        return FilterStack, ()
