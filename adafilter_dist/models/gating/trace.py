"""Traces a network's convolutions in order of execution, and what reads their outputs.

torch.fx does so without running anything. If it cannot follow the code, one real forward is
observed instead. A trace holds for one mode, training or evaluation.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.modes import in_mode

_WATCHED = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class ConvCall:
    """One call of a convolution, and the readers of its output: module names or functions."""

    name: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """All calls of convolutions in order of execution; how often each watched module was called."""

    found_by: Literal["fx", "forward"]
    convs: tuple[ConvCall, ...]
    calls: Counter[str] = field(default_factory=Counter)


def trace(model: nn.Module, example: Tensor, training: bool = False) -> Trace:
    """Trace `model` in one mode; `example` (N, C, H, W) is used where torch.fx fails.

    Raises UserError where the forward itself fails.
    """
    with in_mode(model, training):
        try:
            return _trace_by_fx(model)
        except Exception:  # code that symbolic tracing cannot follow raises anything
            pass
        try:
            return _trace_by_forward(model, example)
        except Exception as error:
            raise UserError(
                f"{type(model).__name__} does not run on an input of shape "
                f"{tuple(example.shape)}: {type(error).__name__}: {error}"
            ) from error


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _WATCHED) or super().is_leaf_module(m, module_qualified_name)


def _trace_by_fx(model: nn.Module) -> Trace:
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules())
    convs: list[ConvCall] = []
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "get_attr":  # a parameter read past its module counts as one more call
            calls[str(node.target).rpartition(".")[0]] += 1
        if node.op != "call_module" or not isinstance(modules[node.target], _WATCHED):
            continue
        calls[node.target] += 1
        if isinstance(modules[node.target], nn.Conv2d):
            convs.append(ConvCall(node.target, tuple(_reader(user) for user in node.users)))
    return Trace("fx", tuple(convs), calls)


def _reader(node: fx.Node) -> str:
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return str(node.target)


class _ReaderRecorder(TorchFunctionMode):
    """Notes who reads the convolutions' outputs: torch functions, and modules by their hooks."""

    def __init__(self) -> None:
        super().__init__()
        # Keeping every output alive keeps its identity unique.
        self.outputs: dict[int, tuple[str, Tensor, list[str]]] = {}
        self.order: list[int] = []
        self.calls: Counter[str] = Counter()
        self.inside = 0

    def note(self, values: Any, reader: str) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and id(value) in self.outputs:
                self.outputs[id(value)][2].append(reader)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.note((args, kwargs), getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def _trace_by_forward(model: nn.Module, example: Tensor) -> Trace:
    watch = _ReaderRecorder()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, _WATCHED):
                before, after = _hooks(watch, name, module)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        with watch:
            result = model(example)
    watch.note(result, "the network's output")
    convs = (watch.outputs[key] for key in watch.order)
    return Trace(
        "forward", tuple(ConvCall(name, tuple(readers)) for name, _, readers in convs), watch.calls
    )


def _hooks(watch: _ReaderRecorder, name: str, module: nn.Module) -> tuple[Any, Any]:
    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        watch.note(inputs, name)
        watch.calls[name] += 1
        watch.inside += 1

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        watch.inside -= 1
        if isinstance(module, nn.Conv2d):
            watch.outputs[id(output)] = (name, output, [])
            watch.order.append(id(output))

    return before, after
