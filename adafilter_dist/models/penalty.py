"""Regularisers of the gates, on the last forward of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.gate import RUNNING_RATE, RecurrentGate, find_gate


def penalty(net: nn.Module, kind: str, weight: float, target: float = 0.5) -> Tensor:
    """weight * mean over layers of the penalty `kind`, a 0-d tensor in the gate's dtype.

    l1: the mean gate. target: (running mean of the gate - target)^2. decide: mean entropy of each
    gate's probability minus the entropy of its mean over images (nats). none: zero.
    """
    gate = find_gate(net)
    if kind == "none":
        return gate.running_mean.new_zeros(())
    layers = {"l1": _l1, "decide": _decide}
    if kind == "target":
        values = _target(gate, target)
    elif kind in layers:
        values = [layers[kind](gate, index) for index in gate.walk.gates]
    else:
        raise ValueError(f"unknown penalty {kind!r}: none, l1, target or decide")
    return weight * torch.stack(values).mean()


def _l1(gate: RecurrentGate, index: int) -> Tensor:
    return gate.walk.gates[index].mean()


def _target(gate: RecurrentGate, target: float) -> list[Tensor]:
    values = []
    for index, gates in gate.walk.gates.items():
        batch = gates.mean()
        moved = torch.lerp(gate.running_mean[index], batch.detach(), RUNNING_RATE)
        # The value is the running mean's; the gradient reaches the batch's gates undamped.
        values.append((moved + (batch - batch.detach()) - target) ** 2)
    return values


def _decide(gate: RecurrentGate, index: int) -> Tensor:
    logits = gate.walk.logits[index] / gate.settings.temperature
    probability = torch.sigmoid(logits)
    # From the logits: its gradient stays finite where the sigmoid saturates.
    each = F.softplus(logits) - logits * probability
    mean = probability.mean(0).clamp(1e-6, 1 - 1e-6)
    together = torch.special.entr(mean) + torch.special.entr(1 - mean)
    return each.mean() - together.mean()
