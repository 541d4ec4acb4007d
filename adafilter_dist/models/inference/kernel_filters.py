"""The filters of a layer as the kernel for GPUs reads them, kept for the next call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.inference.row_cache import TensorVersion


@dataclass(frozen=True)
class KernelFilters:
    """Rows (T, KH, KW, C_in) in the dtype of the products, and pairs int64 (2, C_out) or None.

    `pairs`: the rows of the frozen and of the tuned filters, None where these lie one bank behind
    the other.
    """

    rows: Tensor
    pairs: Tensor | None


class KernelFilterCache:
    """What the layer's own filters were last, in the dtype last asked for.

    Under autocast a layer holds its filters twice: in their own dtype, and in that of the products.
    It is no part of the state and is not copied with its module.
    """

    def __init__(self) -> None:
        self._kept: KernelFilters | None = None
        self._sources: list[TensorVersion] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelFilterCache:
        return KernelFilterCache()

    def __reduce__(self) -> tuple[type[KernelFilterCache], tuple[()]]:
        return KernelFilterCache, ()

    def of(
        self, rows: Tensor, frozen: Tensor, tuned: Tensor, dtype: torch.dtype, *, paired: bool
    ) -> KernelFilters:
        """The filters in ``dtype``; with ``paired`` there is no table of rows."""
        tensors = (rows, frozen, tuned)
        known = zip(self._sources, tensors, strict=False)
        same = self._kept is not None and all(source.is_of(tensor) for source, tensor in known)
        if not same or self._kept is None or self._kept.rows.dtype != dtype:
            self._kept = None  # two at a time need not fit
            # As ordinary tensors, so that they serve outside inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                pairs = None if paired else torch.stack((frozen, tuned))
                self._kept = KernelFilters(rows.detach().to(dtype), pairs)
            self._sources = [TensorVersion(tensor) for tensor in tensors]
        return self._kept
