"""The filters of a layer to choose from, and what was derived from them for the next call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.inference.row_cache import KeptRows, Source


@dataclass(frozen=True)
class Laid:
    """All filters in the order in which a kernel reads them, and bias (2, C): frozen, tuned."""

    layouts: Tensor
    bias: Tensor


LayOut = Callable[[Tensor, Tensor, Tensor], Laid]
"""Of rows, bias and pairs int64 (2, C): the rows of the frozen and of the tuned filters."""


class LaidFilters:
    """The layout made last; made again when its filters are others than it was made of.

    It is part of no state and is not copied with its module.
    """

    def __init__(self) -> None:
        self._laid: Laid | None = None
        self._sources: list[Source] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> LaidFilters:
        return LaidFilters()

    def __reduce__(self) -> tuple[type[LaidFilters], tuple[()]]:
        return LaidFilters, ()

    def of(self, table: FilterTable, lay_out: LayOut) -> Laid:
        """`lay_out` of that table's filters."""
        given = (table.rows, table.bias, table.frozen, table.tuned)
        known = zip(self._sources, given, strict=False)
        if self._laid is None or not all(source.is_of(tensor) for source, tensor in known):
            self._laid = None  # two at a time need not fit
            # As ordinary tensors, so that they serve outside inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                pairs = torch.stack((table.frozen, table.tuned))
                self._laid = lay_out(table.rows, table.bias, pairs)
            self._sources = [Source(tensor) for tensor in given]
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
    kept: KeptRows | None = field(default_factory=KeptRows)
    laid: LaidFilters = field(default_factory=LaidFilters)

    @property
    def filters(self) -> int:
        """C, the channels of the output."""
        return len(self.tuned)

    def chosen(self, bits: Tensor) -> Tensor:
        """The row of each filter and image, int64 (N, C), for bits bool (N, C)."""
        return torch.where(bits, self.tuned, self.frozen)

    def picked(self, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows and bias of chosen (R,), or all as they lie; overwritten by the next call."""
        if chosen is None:
            return self.rows, self.bias
        if self.kept is None:
            return self.rows.index_select(0, chosen), self.bias.index_select(0, chosen)
        return self.kept.pick(self.rows, self.bias, chosen)

    def without_buffers(self) -> FilterTable:
        """The same filters; what is picked of them is nobody else's."""
        return replace(self, kept=None)

    def laid_out(self, lay_out: LayOut) -> Laid:
        """All filters as a kernel reads them."""
        return self.laid.of(self, lay_out)
