"""A step of the recurrent gate, forward and backward, in plain PyTorch.

For pooled features x (N, C_in), u = P norm(x) + p, (h, c) = LSTM(u, (h, c)), logits = Q h + q,
gates 1 where the logits are positive. Backward is written out, so that autograd keeps no graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5
"""Of the layer norm."""


class Layer(NamedTuple):
    """Projections into the hidden size, (H, C_in), and out of it, (C_out, H)."""

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor


class Cell(NamedTuple):
    """Of `nn.LSTMCell`, in its order of parameters: (4H, H) twice, (4H,) twice."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor


@dataclass(frozen=True)
class Rule:
    """How the gate is computed, apart from its weights.

    `normalise`: a layer norm of the features. `sigmoid`: gradients pass the threshold as through
    a sigmoid, else as they are. `recurrent`: the state runs from layer to layer.
    """

    normalise: bool
    sigmoid: bool
    temperature: float
    recurrent: bool


class Kept(NamedTuple):
    """What backward needs of a step: (N, C_in), (N, 1), (N, H), (N, 4H), (N, H) and (N, H).

    `slope` (N, C_out): the derivative of gates by logits. `gates` (N, C_out), outside of autograd's
    graph: for the layer, which keeps them.
    """

    normalised: Tensor
    rstd: Tensor | None
    projected: Tensor
    activations: Tensor
    tanh_cell: Tensor
    hidden: Tensor
    slope: Tensor
    gates: Tensor


class StepGradients(NamedTuple):
    """Of the step's inputs, and of what its weights multiply; h and c None without a state."""

    pooled: Tensor
    h: Tensor | None
    c: Tensor | None
    logits: Tensor
    preactivations: Tensor
    projected: Tensor


def step(
    pooled: Tensor,
    layer: Layer,
    cell: Cell,
    state: tuple[Tensor, Tensor] | None,
    rule: Rule,
    shift: tuple[Tensor, int] | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Kept]:
    """Gates, logits (N, C_out), h, c (N, H), and what backward needs."""
    normalised, rstd = pooled, None
    if rule.normalise:
        normalised, _, rstd = torch.native_layer_norm(pooled, pooled.shape[1:], None, None, EPS)
    projected = F.linear(normalised, layer.weight_in, layer.bias_in)

    # The LSTM's cell.
    activations = F.linear(projected, cell.weight_ih, cell.bias_ih)
    if state is None:
        activations += cell.bias_hh
    else:
        activations += F.linear(state[0], cell.weight_hh, cell.bias_hh)
    i, f, g, o = activations.chunk(4, 1)
    i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
    c = i * g if state is None else (f * state[1]).add_(i * g)
    tanh_cell = c.tanh()
    h = o * tanh_cell

    # Projection out, on top of the shift, and the threshold.
    logits = F.linear(h, layer.weight_out, layer.bias_out)
    if shift is not None:
        values, column = shift
        logits += values[:, column : column + 1]
    compared = logits if rule.temperature == 1 else logits / rule.temperature
    if noise is not None:
        compared = compared + noise
    gates = (compared > 0).to(logits.dtype)
    slope = torch.full_like(logits, 1 / rule.temperature)
    if rule.sigmoid:
        soft = torch.sigmoid(compared)
        slope *= soft * (1 - soft)
    # A copy of h: the output itself belongs to autograd's graph, which would then refer to itself.
    of_cell = (projected, activations, tanh_cell, h.clone())
    kept = Kept(normalised, rstd, *of_cell, slope, gates.detach())
    return gates, logits, h, c, kept


def gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    kept: Kept,
    cell_before: Tensor | None,
    layer: Layer,
    cell: Cell,
) -> StepGradients:
    """From those of gates, logits, h and c, of which None are zero."""
    dgates, dlogits, dh, dc = grads
    if dgates is not None:
        through = dgates * kept.slope
        dlogits = through if dlogits is None else dlogits + through
    elif dlogits is None:
        dlogits = torch.zeros_like(kept.slope)
    from_logits = dlogits @ layer.weight_out
    dh = from_logits if dh is None else dh + from_logits

    # The LSTM's cell.
    i, f, g, o = kept.activations.chunk(4, 1)
    through_cell = dh * o * (1 - kept.tanh_cell.square())
    dc = through_cell if dc is None else dc + through_cell
    df = torch.zeros_like(f) if cell_before is None else dc * cell_before * f * (1 - f)
    parts = (dc * g * i * (1 - i), df, dc * i * (1 - g.square()), dh * kept.tanh_cell * o * (1 - o))
    preactivations = torch.cat(parts, 1)
    projected = preactivations @ cell.weight_ih
    has_state = cell_before is not None
    dh_before = preactivations @ cell.weight_hh if has_state else None

    # Projection in, and the layer norm.
    dx = projected @ layer.weight_in
    if kept.rstd is not None:
        aligned = (dx * kept.normalised).mean(1, keepdim=True)
        dx = (dx - dx.mean(1, keepdim=True) - kept.normalised * aligned) * kept.rstd
    return StepGradients(
        dx, dh_before, dc * f if has_state else None, dlogits, preactivations, projected
    )
