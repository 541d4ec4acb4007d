"""A network as torch.export can follow it: without hooks, exceptions and looks at its weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import GatedNet
from adafilter_dist.models.gating.look_ahead import LookAhead


class TracedLookAhead(nn.Module):
    """`LookAhead` as a graph that ends where the last features are read: images -> (N, D).

    UserError where torch.fx cannot trace the network.
    """

    def __init__(self, source: LookAhead) -> None:
        super().__init__()
        names = list(source.batchnorms)
        network = copy.deepcopy(source.network)
        tracer = _Tracer(names)
        try:
            graph = tracer.trace(network)
        except Exception as error:  # whatever the network's own code raises for a proxy
            raise UserError(
                f"the look-ahead of the gate cannot be traced ({type(error).__name__}: {error}); "
                "export it with --to safetensors"
            ) from error
        calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
        (output,) = (node for node in graph.nodes if node.op == "output")
        output.args = (tuple(calls[name] for name in names),)
        self.graph = fx.GraphModule(network, graph).eval()
        self.graph.graph.eliminate_dead_code()
        self.graph.delete_all_unused_submodules()
        self.graph.recompile()
        self.width = source.width

    def forward(self, images: Tensor) -> Tensor:
        wide = torch.float64 if images.dtype == torch.float64 else torch.float32
        outputs: Sequence[Tensor] = self.graph(images)
        return torch.cat([each.mean((2, 3), dtype=wide) for each in outputs], 1)


class _Tracer(fx.Tracer):
    """Traces into everything but the BatchNorms whose outputs are read."""

    def __init__(self, leaves: Sequence[str]) -> None:
        super().__init__()
        self._leaves = set(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(
            m, module_qualified_name
        )


class ForExport(nn.Module):
    """What is exported: images -> logits (N, classes), or with ``gates`` (logits, gate logits).

    The gates' logits (N, F) are those of all layers side by side, in order of execution; without
    columns for a network that has none. ``pixels``: the input is uint8 RGB (N, H, W, 3), which is
    normalised first, else normalised images (N, 3, H, W).
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        pixels: tuple[Sequence[float], Sequence[float]] | None = None,
        gates: bool = False,
    ) -> None:
        """`pixels`: mean and std (0..1 units) where the input is to be pixels."""
        super().__init__()
        self.model = exportable(model)
        self.gates = gates
        self.pixels = pixels is not None
        if pixels is not None:
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in pixels)
            floating = [t for t in model.state_dict().values() if t.is_floating_point()]
            for name, tensor in (("scale", 1 / (255 * std)), ("shift", -mean / std)):
                self.register_buffer(name, tensor.to(floating[0].dtype).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Any:
        if self.pixels:
            images = images.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift
        logits: Tensor = self.model(images)
        return (logits, gate_logits(self.model, logits)) if self.gates else logits


def gate_logits(model: nn.Module, logits: Tensor) -> Tensor:
    """The gates' logits (N, F) of the last forward, layers side by side; (N, 0) without gates."""
    if not isinstance(model, GatedNet):
        return logits.new_zeros((logits.shape[0], 0))
    of_layer = model.gate.decisions.logits
    parts = [of_layer[index].expand(logits.shape[0], -1) for index in sorted(of_layer)]
    return torch.cat(parts, 1) if parts else logits.new_zeros((logits.shape[0], 0))


def exportable(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the CPU, in evaluation mode; UserError where its gates are an oracle.

    What the decision on pictures needs is found out beforehand.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    if not isinstance(model, GatedNet):
        return model
    control, picture = model.gate.control, model.gate.picture
    if control is not None and control.settings.mode == "oracle":
        raise UserError("method.gate.mode=oracle: its gates are named for domains of the data")
    if isinstance(model.look_ahead, LookAhead):
        model.look_ahead = TracedLookAhead(model.look_ahead)  # type: ignore[assignment]
    if picture is not None:
        needs = picture.needs_features()
        picture.needs_features = lambda: needs
        if not needs:
            model.look_ahead = None
    return model
