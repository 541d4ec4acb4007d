"""Gates that nothing is learned for: the controls that a learned gate is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.micro_batches import draw
from adafilter_dist.models.gating.picture_decision import group_of_layers
from adafilter_dist.recipe.sections.model import Gate

OracleGates = Mapping[str, float | Sequence[float]]
"""For each domain a gate, or one for each group of consecutive layers."""


class ControlGates(nn.Module):
    """The gates of `method.gate.mode` partition, bernoulli, constant or oracle.

    partition: one bit a filter, drawn once (1 with `probability`), in the buffer `partition`.
    bernoulli: bits drawn anew for each picture and filter in training; in evaluation their mean, a
    blend. constant: the blend `probability`. oracle: the gate that `oracle` names for the picture's
    domain and the layer's group; `domains` (N,) are the numbers of the pictures of this forward,
    set by who runs it. UserError for more groups than layers.
    """

    partition: Tensor
    domain_gates: Tensor

    def __init__(
        self,
        settings: Gate,
        widths: Sequence[int],
        generator: torch.Generator | None,
        **kind: Any,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._first = [sum(widths[:index]) for index in range(len(widths))]
        self.domains: Tensor | None = None
        if settings.mode == "partition":
            drawn = torch.rand(sum(widths), generator=generator, dtype=torch.float32)
            self.register_buffer("partition", (drawn < settings.probability).to(**kind))
        if settings.mode == "oracle":
            self.order_domains(list(settings.oracle or {}), **kind)

    def order_domains(self, names: Sequence[str], **kind: Any) -> None:
        """Take the numbers of domains as those of `names`: the data's, in their order."""
        gates = gates_by_layer(self.settings.oracle or {}, names, len(self._first))
        self.register_buffer("domain_gates", gates.to(**kind), persistent=False)

    def gates(self, index: int, like: Tensor, training: bool) -> Tensor:
        """Gates of layer `index` of the shape and dtype of `like` (N, C_out)."""
        settings = self.settings
        if settings.mode == "partition":
            first = self._first[index]
            return self.partition[first : first + like.shape[1]].expand_as(like)
        if settings.mode == "oracle":
            if self.domains is None or len(self.domains) != len(like):
                raise RuntimeError(
                    "method.gate.mode=oracle: the pictures' domains were not given; evaluate with "
                    "data that have domains"
                )
            return self.domain_gates[self.domains, index, None].expand_as(like)
        if settings.mode == "bernoulli" and training:
            return (draw(torch.rand, like) < settings.probability).to(like.dtype)
        return torch.full_like(like, settings.probability)


def gates_by_layer(oracle: OracleGates, names: Sequence[str], layers: int) -> Tensor:
    """The gates (domains, layers) that `oracle` has for the domains `names`.

    UserError where a domain has gates for more groups of layers than there are layers.
    """
    rows: list[list[float]] = []
    for name in names:
        named = oracle[name]
        gates = list(named) if isinstance(named, Sequence) else [named]
        if len(gates) > layers:
            raise UserError(
                f"oracle: domain {name!r} has {len(gates)} gates, and {layers} layers are gated; "
                "give one gate for each group of consecutive layers"
            )
        rows.append([gates[group] for group in group_of_layers(layers, len(gates))])
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), layers)


def set_domains(
    model: nn.Module, domains: Tensor | None, names: Sequence[str] | None = None
) -> None:
    """Tell the gates of mode=oracle inside `model` the domains (N,) of the next pictures.

    With `names`, the data's domains in the order of their numbers, also what the numbers mean.
    """
    for module in model.modules():
        if isinstance(module, ControlGates) and module.settings.mode == "oracle":
            module.domains = domains
            if names is not None:
                like = module.domain_gates
                module.order_domains(names, device=like.device, dtype=like.dtype)


@contextmanager
def any_domain(model: nn.Module, pictures: int) -> Iterator[None]:
    """Inside, trial runs of as many pictures without a domain take the first one's gates."""
    device = next(model.parameters()).device
    set_domains(model, torch.zeros(pictures, dtype=torch.int64, device=device))
    try:
        yield
    finally:
        set_domains(model, None)
