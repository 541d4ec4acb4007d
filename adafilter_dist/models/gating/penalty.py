"""Regularisers of the gates, on the last forward of the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.gating import micro_batches
from adafilter_dist.models.gating.gate import RUNNING_RATE, RecurrentGate, find_gate


def penalty(net: nn.Module, kind: str, weight: float, target: float = 0.5) -> Tensor:
    """weight * mean over layers of the penalty `kind`, a 0-d tensor in the gate's dtype.

    l1: the mean gate. target: (running mean of the gate - target)^2. decide: mean entropy of each
    gate's probability minus the entropy of its mean over images (nats). none: zero. Where the
    forward held several micro-batches, the mean of theirs.
    """
    gate = find_gate(net)
    if kind == "none":
        return gate.running_mean.new_zeros(())
    kinds: dict[str, Callable[[RecurrentGate, int, Tensor, Tensor], Tensor]] = {
        "l1": _l1,
        "decide": _decide,
        "target": partial(_target, target=target),
    }
    if kind not in kinds:
        raise ValueError(f"unknown penalty {kind!r}: none, l1, target or decide")
    split = micro_batches.current.split
    values = [
        kinds[kind](gate, index, gates, logits)
        for index, every in gate.decisions.gates.items()
        for gates, logits in zip(split(every), split(gate.decisions.logits[index]), strict=True)
    ]
    return weight * torch.stack(values).mean()


def _l1(gate: RecurrentGate, index: int, gates: Tensor, logits: Tensor) -> Tensor:
    return gates.mean()


def _target(
    gate: RecurrentGate, index: int, gates: Tensor, logits: Tensor, target: float
) -> Tensor:
    batch = gates.mean()
    moved = torch.lerp(gate.running_mean[index], batch.detach(), RUNNING_RATE)
    # The value is the running mean's; the gradient reaches the batch's gates undamped.
    return (moved + (batch - batch.detach()) - target) ** 2


def _decide(gate: RecurrentGate, index: int, gates: Tensor, logits: Tensor) -> Tensor:
    logits = logits / gate.settings.temperature
    probability = torch.sigmoid(logits)
    # From the logits: its gradient stays finite where the sigmoid saturates.
    each = F.softplus(logits) - logits * probability
    mean = probability.mean(0).clamp(1e-6, 1 - 1e-6)
    together = torch.special.entr(mean) + torch.special.entr(1 - mean)
    return each.mean() - together.mean()
