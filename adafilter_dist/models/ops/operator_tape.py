"""A stand-in for CUDA graphs on a CPU: PyTorch's operators, recorded and run again one by one.

For tests and benchmarks where there is no GPU. As with a graph, Python code does not run again and
every tensor stays where it was, so that what would go wrong with one goes wrong here, too: a number
of the host that was recorded, a result that was left in another tensor. Work that a graph cannot
hold because the host reads a value of the device is refused. Streams, memory pools and the launch
of kernels have no counterpart. Code that is called by address (`passes_cpu`) is not seen: the
layers of AdaFilter are recorded with ``train.kernels=reference``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adafilter_dist.models.ops.device_graph import Work

# What waits for a GPU, or copies from ordinary memory, which a graph would read again later.
_REFUSED = {
    "aten::_local_scalar_dense": "the host reads a value of the device",
    "aten::nonzero": "the host waits for the number of elements",
    "aten::masked_select": "the host waits for the number of elements",
    "aten::_unique2": "the host waits for the number of elements",
    "aten::_linalg_check_errors": "the host waits for the success of a decomposition",
    "aten::_linalg_svd": "the host waits for the success of a decomposition",
    "aten::equal": "the host reads a value of the device",
    "aten::is_nonzero": "the host reads a value of the device",
    "aten::lift_fresh": "a tensor is made of numbers of the host",
}


class NotRecordable(RuntimeError):
    """An operator that a CUDA graph could not hold."""


@dataclass(frozen=True)
class _Call:
    function: Any
    arguments: Sequence[Any]
    words: Mapping[str, Any]
    results: list[Tensor]
    """What it gave that lies in no argument's memory: filled anew by a replay."""

    def again(self) -> None:
        leaves = tree_leaves(self.function(*self.arguments, **self.words))
        values = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self.results:
            for result, value in zip(self.results, values, strict=True):
                result.copy_(value)


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        words = kwargs or {}
        _require_recordable(func, args)
        result = func(*args, **words)
        argument_places = {
            _place(leaf) for leaf in tree_leaves((args, words)) if isinstance(leaf, Tensor)
        }
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        new = [leaf for leaf in made if _place(leaf) not in argument_places]
        if new and len(new) < len(made):
            raise NotRecordable(f"{func}: some of its results are views, others are not")
        if new or func._schema.is_mutable:
            self.calls.append(_Call(func, args, words, new))
        return result


class TapeRecorder:
    """Records on a CPU; `records` and `replays` count what was done."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def record(self, work: Work, generators: Sequence[torch.Generator] = ()) -> Work:
        tape = _Tape()
        with tape:
            work()
        self.records += 1

        def replay() -> None:
            with torch.no_grad():
                for call in tape.calls:
                    call.again()
            self.replays += 1

        return replay


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _require_recordable(func: Any, args: tuple[Any, ...]) -> None:
    name = func._schema.name
    reason = _REFUSED.get(name)
    chosen_by = args[1] if name.startswith("aten::index") and len(args) > 1 else ()
    if isinstance(chosen_by, list | tuple) and any(_is_mask(each) for each in chosen_by):
        reason = "the host waits for the number of elements"
    if reason is not None:
        raise NotRecordable(f"{name}: {reason}")
