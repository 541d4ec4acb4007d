"""Where the time of a call goes: torch.profiler's events, sorted into the parts of a network.

Forward, parts are marked by hooks on modules. Backward, a node of autograd belongs to the part
whose operation made it (they carry one sequence number). The gradients of a convolution's input and
of its filters come from one operation: its time is shared out as another pass, in which they are
computed one after the other, shows. A kernel that computes a convolution and the selection in one
counts under "BatchNorm + selection".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from adafilter_dist.models.gating.gate import RecurrentGate
from bench.floors import FORWARD, GATE, INPUT, NORM, OTHER, UPDATE, WEIGHT

REST = "rest"
PARTS = (FORWARD, INPUT, WEIGHT, NORM, GATE, OTHER, UPDATE, REST)
MARK = "part: "
_BOTH = "both gradients"
_STACKED = "_StackedConv"  # of a gated layer: adafilter_dist/models/ops/stacked_conv.py
_NODE = "autograd::engine::evaluate_function: "


def seconds_by_part(
    work: Callable[[], Any],
    net: nn.Module,
    gated: Collection[str],
    *,
    device: torch.device,
    times: int,
) -> dict[str, float]:
    """Seconds by part of one call of `work`, the mean over `times` calls.

    `gated` are the paths of the gated convolutions in the source network. On a GPU it is the time
    of kernels, on a CPU that of operations.
    """
    with marked(net, gated):
        profiled(work, device, 1)  # the first costs more
        seconds_of = profiled(work, device, times)
        if seconds_of[_BOTH]:
            with SplitGradients():
                apart = profiled(work, device, 1)
            of_input = apart[INPUT] / (apart[INPUT] + apart[WEIGHT])
            seconds_of[INPUT] += of_input * seconds_of[_BOTH]
            seconds_of[WEIGHT] += (1 - of_input) * seconds_of[_BOTH]
    return {part: seconds_of[part] for part in PARTS}


def profiled(work: Callable[[], Any], device: torch.device, times: int) -> dict[str, float]:
    """Seconds by part of one call, by the marks that are there."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities, acc_events=True) as seen:
        for _ in range(times):
            work()
        if on_gpu:
            torch.cuda.synchronize(device)
    seconds_of = sort_events(seen.events() or [], on_gpu=on_gpu)
    return defaultdict(float, {part: seconds / times for part, seconds in seconds_of.items()})


@contextmanager
def marked(net: nn.Module, gated: Collection[str]) -> Iterator[None]:
    """Inside, calls of the gate, of BatchNorms and of gated layers are marked by their part."""
    with ExitStack() as stack:
        for path, module in net.named_modules():
            part = _part_of(path, module, gated)
            if part is not None:
                open_marks: list[Any] = []
                before, after = _mark(part, open_marks)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        yield


def _part_of(path: str, module: nn.Module, gated: Collection[str]) -> str | None:
    if isinstance(module, RecurrentGate):
        return GATE
    if isinstance(module, nn.BatchNorm2d):
        return NORM
    if isinstance(module, nn.Conv2d):
        return None
    # A converted network holds the source network at some path of its own.
    return NORM if any(path == name or path.endswith(f".{name}") for name in gated) else None


def _mark(part: str, open_marks: list[Any]) -> tuple[Any, Any]:
    def before(*_: Any) -> None:
        mark = record_function(MARK + part)
        mark.__enter__()
        open_marks.append(mark)

    def after(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    return before, after


class SplitGradients(TorchDispatchMode):
    """Computes the gradients of a convolution's input and of its filters one after the other."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.convolution_backward.default or kwargs:
            return func(*args, **(kwargs or {}))
        of_input, of_weight, of_bias = args[-1]
        seconds_of = [None, None, None]
        if of_input:
            with record_function(MARK + INPUT):
                seconds_of[0] = func(*args[:-1], [True, False, False])[0]
        if of_weight or of_bias:
            with record_function(MARK + WEIGHT):
                seconds_of[1:] = func(*args[:-1], [False, of_weight, of_bias])[1:]
        return tuple(seconds_of)


def sort_events(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Seconds by part of a profile's events (torch.autograd.profiler_util.FunctionEvent)."""
    own = [event for event in events if event.device_type == torch.profiler.DeviceType.CPU]
    own.sort(key=lambda event: event.time_range.start)
    roots = [event for event in own if event.cpu_parent is None]
    made_in: dict[int, str] = {}  # sequence number -> part; the last operation makes the node
    seconds_of: dict[str, float] = defaultdict(float)
    nodes = [root for root in roots if _is_node(root)]
    for root in roots:
        if not _is_node(root):
            _visit(root, None, False, made_in, seconds_of, on_gpu)
    for root in nodes:
        _visit(root, None, True, made_in, seconds_of, on_gpu)
    return seconds_of


def _is_node(event: Any) -> bool:
    return bool(event.name.startswith(_NODE)) or event.scope == 1


def _visit(
    event: Any,
    inherited: str | None,
    backward: bool,
    made_in: dict[int, str],
    seconds_of: dict[str, float],
    on_gpu: bool,
) -> None:
    backward = backward or _is_node(event)
    part = part_of_event(event.name, event.sequence_nr, inherited, backward, made_in)
    if not backward and event.sequence_nr >= 0:
        made_in[event.sequence_nr] = part
    microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
    seconds_of[part] += microseconds / 1e6
    parts = dict.fromkeys(range(len(event.cpu_children)), part)
    if event.name == _STACKED + "Backward":
        parts = _products_of_stacked(event.cpu_children)
    for number, child in enumerate(event.cpu_children):
        _visit(child, parts[number], backward, made_in, seconds_of, on_gpu)


def _products_of_stacked(children: Sequence[Any]) -> dict[int, str]:
    """Which gradient each operation in the backward of stacked filters belongs to, by its place.

    That of the input comes first, where there is one: for it the filters are joined.
    """
    part = INPUT if any(child.name == "aten::cat" for child in children) else WEIGHT
    seconds_of = {}
    for number, child in enumerate(children):
        seconds_of[number] = part
        if child.name in ("aten::matmul", "aten::mm"):
            part = WEIGHT
    return seconds_of


def part_of_event(
    name: str, sequence: int, inherited: str | None, backward: bool, made_in: dict[int, str]
) -> str:
    """The part of one event, given that of the event around it."""
    if name.startswith(MARK):
        return name.removeprefix(MARK)
    if name.startswith("Optimizer."):
        return UPDATE
    if name.startswith(_NODE):
        return REST if "AccumulateGrad" in name else made_in.get(sequence, OTHER)
    if name == _STACKED:
        return FORWARD
    if ("convolution" in name and "backward" not in name) or name == "aten::conv2d":
        return INPUT if backward else FORWARD  # a transposed one may give an input's gradient
    if "convolution_backward" in name and inherited not in (INPUT, WEIGHT):
        return _BOTH
    if inherited is not None:
        return inherited
    if "batch_norm" in name:
        return NORM
    return OTHER if name.startswith("aten::") or backward else REST
