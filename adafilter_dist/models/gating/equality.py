"""Checks that a converted network computes what its source did, in both modes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.find_pairs import Pairs
from adafilter_dist.models.gating.gated_conv import GatedConvBN, set_kernels
from adafilter_dist.models.gating.modes import in_mode, trial_copy

# Two evaluations of one network may differ by rounding; relative to the largest output.
_TOLERANCE = 1e-3
_MODES = {False: "evaluation", True: "training"}


@dataclass
class SourceNetwork:
    """A network before its conversion, and what it computes on the example in both modes.

    `network` is a copy of the one that is converted, or that one itself if it cannot be copied
    (`copied` False). `training` is None if the network does not run in training mode. `fixed_norms`
    are the paths of BatchNorms that `train()` leaves in evaluation mode.
    """

    network: nn.Module
    copied: bool
    example: Tensor
    evaluation: Any
    training: Any
    fixed_norms: frozenset[str]

    @classmethod
    def of(cls, network: nn.Module, example: Tensor, copied: bool) -> SourceNetwork:
        """Runs `network` on the example in both modes."""
        with in_mode(network, training=False):
            evaluation = network(example)
        try:
            with in_mode(network, training=True):
                training = _detached(network(example))
        except Exception:  # it needs targets, or more of a batch: nothing to compare
            training = None
        return cls(network, copied, example, evaluation, training, _fixed_norms(network))

    def check(self, net: nn.Module, pairs: Pairs) -> None:
        """UserError, naming the layer, if `net` computes something else than the source did.

        `net` is the converted network, its backbone at `net.backbone`.
        """
        name = type(self.network).__name__
        if not isinstance(self.evaluation, Tensor):
            raise UserError(
                f"{name} returns a {type(self.evaluation).__name__} in evaluation mode; "
                "AdaFilter needs a network that returns one tensor of logits"
            )
        net = trial_copy(net)
        self._check_modes(net, pairs)
        # The kernels' outputs lie channels-last; draws for them would fall on other elements.
        set_kernels(net, "reference")
        for training, before in ((False, self.evaluation), (True, self.training)):
            if before is not None:
                self._check_outputs(net, pairs, before, training)
        set_kernels(net, "auto")
        step_statistics.discard(net)

    def _check_modes(self, net: nn.Module, pairs: Pairs) -> None:
        norms = {pair.batchnorm: f"{pair.conv}.bn1" for pair in pairs.gated}
        backbone: nn.Module = net.get_submodule("backbone")
        fixed_norms = _fixed_norms(backbone)
        for path in sorted(self.fixed_norms):
            if norms.get(path, path) not in fixed_norms:
                kind = type(self.network.get_submodule(path)).__name__
                raise UserError(
                    f"{type(self.network).__name__} cannot be converted: {path} ({kind}) stays in "
                    "evaluation mode in training, which is lost where it becomes a gated layer's. "
                    "Make it a plain nn.BatchNorm2d that train() reaches; the recipe's "
                    "method.fixed_statistics=both keeps the statistics of gated layers as they are"
                )

    def _check_outputs(self, net: nn.Module, pairs: Pairs, before: Any, training: bool) -> None:
        name, mode = type(self.network).__name__, _MODES[training]
        try:
            with in_mode(net, training):
                after = _detached(net(self.example))
        except Exception as error:
            where = self._where(net, pairs, training)
            raise UserError(
                f"{name} cannot be gated: in {mode} mode it reaches into its convolutions or "
                f"BatchNorms{where} ({type(error).__name__}: {error}). Leave those layers out with "
                "a pattern (layers=)"
            ) from error
        difference = _difference(before, after)
        if difference <= _TOLERANCE or self._rounding(net, training):
            return
        where = self._where(net, pairs, training)
        raise UserError(
            f"{name} computes something else after conversion in {mode} mode (relative difference "
            f"{difference:.2g}){where}: it uses its convolutions in a way that was not seen. Leave "
            "such layers out with a pattern (layers=)"
        )

    def _rounding(self, net: nn.Module, training: bool) -> bool:
        """Whether the difference was one of rounding: float64 shows none."""
        if not self.copied:
            return False
        outputs = []
        for each in (self.network, net):
            wide = trial_copy(each)
            try:
                with in_mode(wide.double(), training):
                    outputs.append(_detached(wide(self.example.double())))
            except Exception:  # code that makes tensors of its own in float32
                return False
        return _difference(*outputs) <= _TOLERANCE

    def _where(self, net: nn.Module, pairs: Pairs, training: bool) -> str:
        """Names the first module whose output differs, or that raised; "" if unknown."""
        if not self.copied:
            return ""
        backbone: nn.Module = net.get_submodule("backbone")
        norms = {
            pair.conv: pair.batchnorm
            for pair in pairs.gated
            if isinstance(backbone.get_submodule(pair.batchnorm), nn.Identity)
        }
        records = []
        for whole, part in ((self.network, self.network), (net, backbone)):
            record = _Record(part, norms)
            try:
                with in_mode(whole, training), record:
                    whole(self.example)
            except Exception:
                pass
            records.append(record)
        path = records[0].first_other(records[1])
        if not path:
            return ""
        path = {norm: conv for conv, norm in norms.items()}.get(path, path)
        return f", first in {path} ({type(self.network.get_submodule(path)).__name__})"


class _Record:
    """Records each module's output, in order of completion, and which modules are still running.

    A gated layer's output is recorded under its BatchNorm's path, unless it includes a residual or
    a ReLU.
    """

    def __init__(self, network: nn.Module, norms: dict[str, str]) -> None:
        self.network, self.norms = network, norms
        self.outputs: list[tuple[str, Any]] = []
        self.running: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for path, module in self.network.named_modules():
            # No hooks on these: with a hook on them, a fused ReLU or residual would run separately.
            if path and not isinstance(module, nn.ReLU | nn.Identity | nn.Sequential):
                gated = isinstance(module, GatedConvBN)
                before, after = self._hooks(self.norms.get(path, path) if gated else path)
                self._stack.callback(module.register_forward_pre_hook(before).remove)
                hook = module.register_forward_hook(after, with_kwargs=True)
                self._stack.callback(hook.remove)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _hooks(self, path: str) -> tuple[Any, Any]:
        def before(module: nn.Module, inputs: Any) -> None:
            self.running.append(path)

        def after(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            self.running.pop()
            if not (named and isinstance(module, GatedConvBN)):
                self.outputs.append((path, _detached(output)))

        return before, after

    def first_other(self, converted: _Record) -> str:
        """The first path whose output differs in `converted`, or in which `converted` failed."""
        if running := [path for path in converted.running if self._has(path)]:
            return running[-1]
        outputs: dict[str, list[Any]] = {}
        for path, output in converted.outputs:
            outputs.setdefault(path, []).append(output)
        for path, output in self.outputs:
            other = outputs[path].pop(0) if outputs.get(path) else output
            if not _difference(output, other) <= _TOLERANCE:
                return path
        return ""

    def _has(self, path: str) -> bool:
        return any(path == name for name, _ in self.network.named_modules())


def _fixed_norms(network: nn.Module) -> frozenset[str]:
    """Paths of BatchNorms that stay in evaluation mode when the network is set to train."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.train()
        return frozenset(
            path
            for path, module in network.named_modules()
            if isinstance(module, _BatchNorm) and not module.training
        )
    finally:
        for module, mode in modes:
            module.training = mode


def _detached(output: Any) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _difference(before: Any, after: Any) -> float:
    """The largest difference relative to the largest value; infinite for other shapes, NaN."""
    ours, theirs = _detached(before), _detached(after)
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        return float("inf")
    largest = 0.0
    for first, second in zip(ours, theirs, strict=True):
        if first.numel():
            first, second = first.double(), second.double()
            size = float((second - first).abs().max()) / max(1.0, float(first.abs().max()))
            largest = max(largest, float("inf") if size != size else size)
    return largest
