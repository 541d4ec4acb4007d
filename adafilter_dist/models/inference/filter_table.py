"""The filters of a layer from which each image chooses, and copies cached for the next call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.inference.row_cache import RowCache, TensorVersion


@dataclass(frozen=True)
class FilterLayout:
    """All filters in the order in which a kernel reads them, and bias (2, C): frozen, tuned."""

    layouts: Tensor
    bias: Tensor


MakeLayout = Callable[[Tensor, Tensor, Tensor], FilterLayout]
"""Of rows, bias and pairs int64 (2, C): the rows of the frozen and of the tuned filters."""


class LayoutCache:
    """Caches one kernel layout of the filters; it is made anew when the filters change.

    It is no part of the state and is not copied with its module.
    """

    def __init__(self) -> None:
        self._laid: FilterLayout | None = None
        self._sources: list[TensorVersion] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> LayoutCache:
        return LayoutCache()

    def __reduce__(self) -> tuple[type[LayoutCache], tuple[()]]:
        return LayoutCache, ()

    def of(self, table: FilterTable, make_layout: MakeLayout) -> FilterLayout:
        """`make_layout` of that table's filters."""
        tensors = (table.rows, table.bias, table.frozen, table.tuned)
        known = zip(self._sources, tensors, strict=False)
        if self._laid is None or not all(source.is_of(tensor) for source, tensor in known):
            self._laid = None  # two at a time need not fit
            # As ordinary tensors, so that they serve outside inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                pairs = torch.stack((table.frozen, table.tuned))
                self._laid = make_layout(table.rows, table.bias, pairs)
            self._sources = [TensorVersion(tensor) for tensor in tensors]
        return self._laid


@dataclass(frozen=True)
class FilterTable:
    """``rows`` (T, KH, KW, C_in / groups) are filters with ``bias`` (T,).

    ``frozen`` and ``tuned`` int64 (C,) say which rows are the two filters of an output channel; one
    that is settled has the same row twice.
    """

    rows: Tensor
    bias: Tensor
    frozen: Tensor
    tuned: Tensor
    row_cache: RowCache | None = field(default_factory=RowCache)
    layout_cache: LayoutCache = field(default_factory=LayoutCache)

    @property
    def filters(self) -> int:
        """C, the channels of the output."""
        return len(self.tuned)

    def chosen(self, bits: Tensor) -> Tensor:
        """The row of each filter and image, int64 (N, C), for bits bool (N, C)."""
        return torch.where(bits, self.tuned, self.frozen)

    def gather(self, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows and bias of chosen (R,), or all in order if None; overwritten by the next call."""
        if chosen is None:
            return self.rows, self.bias
        if self.row_cache is None:
            return self.rows.index_select(0, chosen), self.bias.index_select(0, chosen)
        return self.row_cache.pick(self.rows, self.bias, chosen)

    def without_buffers(self) -> FilterTable:
        """The same filters without the cache: `gather` then returns tensors of its own."""
        return replace(self, row_cache=None)

    def layout(self, make_layout: MakeLayout) -> FilterLayout:
        """All filters as a kernel reads them."""
        return self.layout_cache.of(self, make_layout)
