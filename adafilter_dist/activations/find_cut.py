"""Finds where the frozen part of a network ends.

The cut is at the output of a module, the last one before anything that is trained, draws random
numbers or keeps statistics. One real forward in training mode shows the order of the modules. A
cut is taken only if the network computes the same from there on, bit by bit, in both modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.activations.frozen_part import Cut, FrozenPart, has_modules
from adafilter_dist.activations.store import is_dense
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.control_gates import any_domain
from adafilter_dist.models.gating.gate import RecurrentGate

_TRIES = 16

Context = Callable[[], AbstractContextManager[Any]]
Penalty = Callable[[Tensor], Tensor]


class NotFrozen(Exception):
    """There is no frozen part; the message says in words what is in the way."""


@dataclass
class _Call:
    name: str
    began: int
    ended: int = 0
    output: Any = None


@dataclass
class _Recorder:
    """The calls of a network's modules in order, and who drew from torch's default generator."""

    time: int = 0
    calls: list[_Call] = field(default_factory=list)
    drew: list[str] = field(default_factory=list)
    open: list[tuple[_Call, Tensor, int]] = field(default_factory=list)

    def tick(self) -> int:
        self.time += 1
        return self.time

    def begin(self, name: str) -> None:
        call = _Call(name, self.tick())
        self.calls.append(call)
        self.open.append((call, torch.default_generator.get_state(), len(self.drew)))

    def end(self, output: Any) -> None:
        call, state, drew = self.open.pop()
        call.ended, call.output = self.tick(), output
        moved = not torch.equal(state, torch.default_generator.get_state())
        # Where a module inside has drawn, that is the one to name.
        if moved and len(self.drew) == drew:
            self.drew.append(call.name)


def find_frozen_part(
    model: nn.Module, head: str, example: Tensor, context: Context, penalty: Penalty
) -> FrozenPart:
    """The longest frozen part of the backbone in `model`, the first module with a part `head`.

    `example` (N, 3, H, W) is run in training mode; statistics, modes and generators are left as
    they were. `context` is entered around each forward, for autocast. `penalty(labels)` is the
    method's. Raises NotFrozen.
    """
    backbone = next(module for module in model.modules() if has_modules(module, [head]))
    with _as_before(model, len(example)):
        recorder, stopped_by, first = _record(model, backbone, example, context)
        cuts = list(_cuts(backbone, recorder, first, len(example)))[:_TRIES]
        if not cuts:
            raise NotFrozen(
                f"no layer comes before {stopped_by}; model.ungated=freeze and method.layers "
                "freeze the layers before the first that is matched"
            )
        for cut in cuts:
            part = FrozenPart.of(model, cut)
            if part is not None and computes_the_same(model, part, example, context, penalty):
                return part
    raise NotFrozen(
        f"what follows {cuts[0].at} (then comes {stopped_by}) needs more than its output: the "
        "pictures themselves, or earlier layers"
    )


def computes_the_same(
    model: nn.Module,
    part: FrozenPart,
    example: Tensor,
    context: Context,
    penalty: Penalty | None = None,
    modes: Sequence[bool] = (True, False),
) -> bool:
    """Whether `model` gives the same bits from the activations as from the pictures.

    In training and in evaluation mode (`modes`): logits, penalty, and what the gate's decision
    sees of a picture.
    """
    with _as_before(model, len(example)) as buffers:
        for training in modes:
            _restore(model, buffers)
            model.train(training)
            whole = _outcome(model, example, context, penalty)
            _restore(model, buffers)
            with context():
                activations = part.run(example)
            if not is_dense(activations):
                return False
            # Other pictures in between: nothing that a method remembers may pass for computed.
            _outcome(model, 1 - 2 * example.flip(0), context, penalty)
            _restore(model, buffers)
            try:
                with part.skipped():
                    short = _outcome(model, activations, context, penalty)
            except Exception:  # layers that take pictures raise anything
                return False
            if not all(torch.equal(*pair) for pair in zip(whole, short, strict=True)):
                return False
    return True


def _outcome(
    model: nn.Module, x: Tensor, context: Context, penalty: Penalty | None
) -> list[Tensor]:
    gates = [module for module in model.modules() if isinstance(module, RecurrentGate)]
    pictures = [gate.picture for gate in gates if gate.picture is not None]
    torch.default_generator.manual_seed(0)
    for picture in pictures:
        picture.measuring = True
    try:
        with context():
            outcome = [model(x)]
        if penalty is not None and model.training:
            outcome.append(penalty(torch.zeros(len(x), dtype=torch.int64, device=x.device)))
        seen = [gate.decisions.features for gate in gates]
    finally:
        for picture in pictures:
            picture.measuring = False
    return [*outcome, *(features for features in seen if features is not None)]


@contextmanager
def _as_before(model: nn.Module, pictures: int) -> Iterator[dict[str, Tensor]]:
    """Restore buffers, modes and generator at the end; no gradients inside. Gives the buffers."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with any_domain(model, pictures), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            yield buffers
        finally:
            for module, mode in modes:
                module.training = mode
            step_statistics.discard(model)
            _restore(model, buffers)


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            buffer.copy_(buffers[name])


def _record(
    model: nn.Module, backbone: nn.Module, example: Tensor, context: Context
) -> tuple[_Recorder, str, int]:
    """The calls of one training forward, what ends the frozen part, and when that begins."""
    model.train()
    recorder = _Recorder()
    versions = {name: buffer._version for name, buffer in backbone.named_buffers()}
    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            before, after = _hooks(recorder, name)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        with context():
            model(example)

    # Whose call it was: a gated layer reads the weights of its convolution without calling it.
    began: dict[str, int] = {}
    for call in recorder.calls:
        began.setdefault(call.name, call.began)

    def caller(path: str) -> str:
        while path not in began:
            path = path.rpartition(".")[0]
        return path

    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    moved = [n for n, buffer in backbone.named_buffers() if buffer._version != versions[n]]
    reasons: dict[str, str] = {}
    for names, reason in (
        ([name.rpartition(".")[0] for name in trained], "which is trained"),
        (recorder.drew, "which draws random numbers in training (model.dropout=false)"),
        ([name.rpartition(".")[0] for name in moved], "whose BatchNorm statistics are updated"),
    ):
        for name in names:
            reasons.setdefault(caller(name), reason)
    if not reasons:
        raise NotFrozen("nothing of it is trained")
    first = min(reasons, key=lambda name: began[name])
    kind = type(backbone.get_submodule(first)).__name__
    return recorder, f"{first or 'the network'} ({kind}), {reasons[first]}", began[first]


def _hooks(recorder: _Recorder, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, inputs: Any) -> None:
        recorder.begin(name)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        recorder.end(output)

    return before, after


def _cuts(backbone: nn.Module, recorder: _Recorder, first: int, pictures: int) -> Iterator[Cut]:
    """Cuts before the time `first`, the last one first."""
    last_end: dict[str, int] = {}
    times: dict[str, int] = {}
    for call in recorder.calls:
        last_end[call.name] = max(last_end.get(call.name, 0), call.ended)
        times[call.name] = times.get(call.name, 0) + 1
    for call in sorted(recorder.calls, key=lambda call: -call.ended):
        output = call.output
        whole = isinstance(output, Tensor) and output.is_floating_point()
        if call.ended > first or times[call.name] > 1 or not whole or len(output) != pictures:
            continue
        done = {name for name, ended in last_end.items() if ended < call.ended}
        # A copy of the network that a method runs beside it has a cut of its own.
        copies = [n for n in done if has_modules(backbone.get_submodule(n), [call.name])]
        done = {n for n in done if not any(_related(n, copy) for copy in copies)}
        inside = (*done, call.name)
        outermost = [name for name in done if not any(name.startswith(f"{o}.") for o in inside)]
        yield Cut(call.name, tuple(sorted(outermost)))


def _related(path: str, other: str) -> bool:
    """Whether one module is the other, or is inside it."""
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
