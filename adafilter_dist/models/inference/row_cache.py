"""Caches the filters chosen last, so that the next call copies only those that differ."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

# With more filters than this share to be copied, one copy of all is faster: what is changed is
# first gathered and then put in its place, which moves each byte twice.
_FEW = 0.4


class TensorVersion:
    """A tensor and its version, to notice later whether it is still the same."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = weakref.ref(tensor), _version(tensor)

    def is_of(self, tensor: Tensor) -> bool:
        """Whether this is the same tensor, unchanged."""
        # Moving a module replaces its tensors; loading a state dict raises their version.
        return self._tensor() is tensor and self._version == _version(tensor)


class RowCache:
    """A buffer of R rows gathered from a table; it keeps the last call's rows.

    It is no part of the state and is not copied with its module. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._chosen: Tensor | None = None
        self._source: TensorVersion | None = None
        self._rows = self._bias = torch.empty(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> RowCache:
        return RowCache()

    def __reduce__(self) -> tuple[type[RowCache], tuple[()]]:
        return RowCache, ()

    def pick(self, rows: Tensor, bias: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """(rows[chosen], bias[chosen]) for rows (T, ...), bias (T,), chosen int64 (R,).

        What is returned is overwritten by the next call.
        """
        before = self._chosen
        same_table = self._source is not None and self._source.is_of(rows)
        if same_table and before is not None and torch.equal(before, chosen):
            return self._rows, self._bias
        if before is None or before.shape != chosen.shape or not same_table:
            self._start(rows, bias, chosen)
            before = None
        # Until the copy below is complete the buffer counts as empty, in case it is interrupted.
        self._chosen = None
        if before is None:
            self._all(rows, bias, chosen)
        else:
            changed = (chosen != before).nonzero().flatten()
            if len(changed) > _FEW * len(chosen):
                self._all(rows, bias, chosen)
            else:
                wanted = chosen[changed]
                self._rows.index_copy_(0, changed, rows.index_select(0, wanted))
                self._bias.index_copy_(0, changed, bias.index_select(0, wanted))
        self._chosen = chosen
        return self._rows, self._bias

    def _all(self, rows: Tensor, bias: Tensor, chosen: Tensor) -> None:
        torch.index_select(rows, 0, chosen, out=self._rows)
        torch.index_select(bias, 0, chosen, out=self._bias)

    def _start(self, rows: Tensor, bias: Tensor, chosen: Tensor) -> None:
        # Made as ordinary tensors, so that they can be written to outside inference mode too.
        with torch.inference_mode(False):
            self._rows = rows.new_empty(len(chosen), *rows.shape[1:])
            self._bias = bias.new_empty(len(chosen))
        self._source = TensorVersion(rows)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
