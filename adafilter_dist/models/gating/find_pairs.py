"""Finds the convolutions that can be gated: those with one BatchNorm2d directly behind."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from adafilter_dist.errors import UserError, nearest, shown
from adafilter_dist.models.gating.batchnorm import has_hooks, is_plain
from adafilter_dist.models.gating.trace import ConvCall, Trace, trace


@dataclass(frozen=True)
class Pair:
    """A convolution and the BatchNorm2d that alone reads its output, by module path."""

    conv: str
    batchnorm: str


@dataclass(frozen=True)
class Pairs:
    """Pairs to gate in order of execution, and every other Conv2d with the reason."""

    gated: tuple[Pair, ...]
    left_out: tuple[tuple[str, str], ...]
    found_by: Literal["fx", "forward", "given"]


def find_pairs(model: nn.Module, example: Tensor, layers: str = ".*") -> Pairs:
    """Find the pairs whose convolution's path matches `layers` (re.search).

    Raises UserError if `layers` is no regular expression or matches nothing, naming the nearest
    path, or if nothing is left to gate.
    """
    try:
        wanted = re.compile(layers)
    except re.error as error:
        raise UserError(f"layers={layers!r} is not a regular expression: {error}") from error
    _require_match(model, layers, wanted)
    calls = trace(model, example)
    checker = _PairChecker(model, calls, _in_training(model, example))
    gated: list[Pair] = []
    left_out: list[tuple[str, str]] = []
    for call in {call.name: call for call in calls.convs}.values():
        reason = checker.objection(call)
        if not reason and not wanted.search(call.name):
            reason = f"does not match layers={layers!r}"
        if reason:
            left_out.append((call.name, reason))
        else:
            gated.append(Pair(call.name, call.readers[0]))
    called = {call.name for call in calls.convs}
    left_out += [
        (name, "does not run in evaluation mode")
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name not in called
    ]
    if not gated:
        raise UserError(_nothing_to_gate(model, left_out))
    return Pairs(tuple(gated), tuple(left_out), calls.found_by)


def _in_training(model: nn.Module, example: Tensor) -> Trace | None:
    try:
        return trace(model, example, training=True)
    except UserError:  # it needs targets, or more of a batch
        return None


def _require_match(model: nn.Module, layers: str, wanted: re.Pattern[str]) -> None:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not names or any(wanted.search(name) for name in names):
        return
    parts = [name.split(".") for name in names]
    above = {".".join(each[:count]) for each in parts for count in range(1, len(each) + 1)}
    raise UserError(
        f"layers={shown(layers)!r} matches none of the {len(names)} convolutions of "
        f"{type(model).__name__}{nearest(layers.strip('^$').replace(chr(92), ''), sorted(above))}: "
        f"they are {', '.join(names[:3])} ... {names[-1]}"
    )


def _nothing_to_gate(model: nn.Module, left_out: list[tuple[str, str]]) -> str:
    if not left_out:
        return f"{type(model).__name__} has no Conv2d: AdaFilter has nothing to gate"
    reasons = Counter(reason for _, reason in left_out).most_common(3)
    words = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    return (
        f"none of the {len(left_out)} convolutions of {type(model).__name__} can be gated: "
        f"{words}. AdaFilter needs Conv2d directly followed by BatchNorm2d; choose such a network "
        "(ResNet, DenseNet, MobileNet, EfficientNet, RegNet, VGG with BN ...)"
    )


class _PairChecker:
    """Says why a convolution cannot be gated."""

    def __init__(self, model: nn.Module, seen: Trace, training: Trace | None) -> None:
        self.modules = dict(model.named_modules())
        self.seen, self.training = seen, training
        every = list(model.named_modules(remove_duplicate=False))
        self.registrations = Counter(id(module) for _, module in every)
        self.owners: dict[int, list[str]] = {}
        for path, module in self.modules.items():
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), []).append(path)

    def objection(self, call: ConvCall) -> str | None:
        """Why this convolution cannot be gated, or None."""
        conv = self.modules[call.name]
        assert isinstance(conv, nn.Conv2d)
        return (
            self._objection_to_readers(call)
            or self._objection_to_module(call.name, conv)
            or self._objection_to_module(call.readers[0], self.modules[call.readers[0]])
            or _objection_to_conv(conv)
            or _objection_to_batchnorm(call.readers[0], self.modules[call.readers[0]])
            or self._objection_in_training(call)
        )

    def _objection_in_training(self, call: ConvCall) -> str | None:
        """A pair in evaluation must be one in training too, where it runs there."""
        if self.training is None:
            return None
        for name in (call.name, call.readers[0]):
            if self.training.calls[name] > 1:
                return f"in training {name} is used {self.training.calls[name]} times in a forward"
        for other in self.training.convs:
            if other.name == call.name and other.readers != call.readers:
                readers = ", ".join(other.readers) or "nobody"
                return f"in training its output is read by {readers}"
        return None

    def _objection_to_readers(self, call: ConvCall) -> str | None:
        readers = [
            f"{name} ({type(self.modules[name]).__name__})" if name in self.modules else name
            for name in call.readers
        ]
        if not readers:
            return "its output is not used"
        if len(readers) > 1:
            return f"its output is read {len(readers)} times: " + ", ".join(readers)
        reader = self.modules.get(call.readers[0])
        if not isinstance(reader, nn.BatchNorm2d):
            return "no BatchNorm2d directly behind it"
        if not is_plain(reader):
            return f"the {type(reader).__name__} behind it is not a plain BatchNorm2d"
        if reader.running_mean is None:
            return "the BatchNorm2d behind it keeps no running statistics"
        return None

    def _objection_to_module(self, name: str, module: nn.Module) -> str | None:
        what = f"it ({name})" if isinstance(module, nn.Conv2d) else f"its BatchNorm {name}"
        if self.seen.calls[name] > 1:
            return f"{what} is used {self.seen.calls[name]} times in a forward"
        if self.registrations[id(module)] > 1:
            return f"{what} is registered under {self.registrations[id(module)]} names"
        for parameter in module.parameters(recurse=False):
            others = [owner for owner in self.owners[id(parameter)] if owner != name]
            if others:
                return f"{what} shares a parameter with {others[0]}"
        return None


def _objection_to_conv(conv: nn.Conv2d) -> str | None:
    if parametrize.is_parametrized(conv):
        return "its weight is parametrised"
    if has_hooks(conv):
        return "hooks are attached to it"
    if "forward" in conv.__dict__:
        return "its forward was replaced"
    state = {name for name, _ in conv.named_parameters()} | {n for n, _ in conv.named_buffers()}
    if not state <= {"weight", "bias"} or not isinstance(conv.weight, nn.Parameter):
        return f"its class {type(conv).__name__} keeps a state of its own"
    return None


def _objection_to_batchnorm(name: str, batchnorm: nn.Module) -> str | None:
    if has_hooks(batchnorm):
        return f"hooks are attached to its BatchNorm {name}"
    return None
