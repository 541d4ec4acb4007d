"""A step of the recurrent gate as one operation, forward and backward.

Pooled features and the LSTM's state go in, gates and the next state come out (what is computed:
`gate_step_reference`). The gradients of the gate's weights need nothing but what the steps kept, so
they are computed for all layers together, when the last of them has its own (`GateForward`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adafilter_dist.models.ops import device_kind, gate_step_reference
from adafilter_dist.models.ops.gate_step_reference import Cell, Kept, Layer, Rule, StepGradients
from adafilter_dist.models.ops.operators import operator


class GateSteps(Protocol):
    """The functions of `gate_step_reference`, under the same names."""

    def step(
        self,
        pooled: Tensor,
        layer: Layer,
        cell: Cell,
        state: tuple[Tensor, Tensor] | None,
        rule: Rule,
        shift: tuple[Tensor, int] | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Kept]:
        """Gates, logits, both of the state, and what backward needs."""

    def gradients(
        self,
        grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        kept: Kept,
        cell_before: Tensor | None,
        layer: Layer,
        cell: Cell,
    ) -> StepGradients:
        """Of the inputs, and of what the weights multiply."""


def pick(x: Tensor) -> GateSteps:
    """Triton's on a GPU, else plain PyTorch's."""
    steps: Any = gate_step_reference
    if device_kind.on_gpu(x):
        try:
            from adafilter_dist.models.ops import gate_step_triton
        except ImportError:  # a build of torch without Triton
            return steps
        steps = gate_step_triton
    return steps


@dataclass
class GateForward:
    """The steps of one forward: the weights they use, and what the weights' gradients are made of.

    `token`, an empty tensor, ties all steps to the weights in autograd's graph. It is not kept
    here, because each step refers to this object.
    """

    layers: Sequence[Layer]
    cell: Cell
    rule: Rule
    steps: GateSteps
    kept: dict[int, Kept] = field(default_factory=dict)
    gradients: dict[int, StepGradients] = field(default_factory=dict)

    def token(self) -> Tensor:
        """For the `step` of each layer."""
        parameters = [*self.cell, *(each for layer in self.layers for each in layer)]
        token: Tensor = _Weights.apply(self, *parameters)
        return token

    def step(
        self,
        token: Tensor,
        index: int,
        pooled: Tensor,
        state: tuple[Tensor, Tensor] | None,
        shift: tuple[Tensor, int] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Gates and logits (N, C_out) of layer `index`, and the next state (N, H) each.

        `pooled` (N, C_in). To the logits is added column k of `shift` = (S, k), S (N, K) or (1, K),
        which gets no gradient. `noise` (N, C_out) is added to the logits that are compared with
        zero, after the temperature has divided them.
        """
        h, c = (None, None) if state is None else state
        gates, logits, h, c = _Step.apply(token, pooled, h, c, self, index, shift, noise)
        return gates, logits, (h, c)


class GateStep(NamedTuple):
    """What the gate's next step is computed from (`GateForward.step`)."""

    forward: GateForward
    token: Tensor
    pooled: Tensor
    state: tuple[Tensor, Tensor] | None
    shift: tuple[Tensor, int] | None
    noise: Tensor | None


class Made(NamedTuple):
    """Of a layer: output, its mean over pixels, gates, logits and the gate's next state."""

    out: Tensor
    mean: Tensor
    gates: Tensor
    logits: Tensor
    h: Tensor
    c: Tensor


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        pooled: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        forward: GateForward,
        index: int,
        shift: tuple[Tensor, int] | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        state = None if h is None or c is None else (h, c)
        gates, logits, h_next, c_next, kept = forward.steps.step(
            pooled, forward.layers[index], forward.cell, state, forward.rule, shift, noise
        )
        ctx.save_for_backward(c)
        ctx.of, ctx.index = forward, index
        forward.kept[index] = kept
        return gates, logits, h_next, c_next

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (c,) = ctx.saved_tensors
        of, index = ctx.of, ctx.index
        dgates, dlogits, dh, dc = grads
        results = of.steps.gradients(
            (dgates, dlogits, dh, dc),
            of.kept[index],
            c,
            of.layers[index],
            of.cell,
        )
        of.gradients[index] = results
        # The token's gradient is nothing; that it comes is what its node waits for.
        return None, results.pooled, results.h, results.c, None, None, None, None


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of: GateForward, *parameters: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.of = of
        return parameters[0].new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtoken: Tensor | None) -> tuple[Tensor | None, ...]:
        of: GateForward = ctx.of
        wanted = ctx.needs_input_grad[1:]
        gradients, of.gradients = of.gradients, {}
        if not gradients or not any(wanted):
            return None, *([None] * len(wanted))
        with torch.autocast(of.cell.weight_ih.device.type, enabled=False):
            results = weight_gradients(of, gradients)
        return None, *(each if want else None for each, want in zip(results, wanted, strict=True))


def weight_gradients(of: GateForward, gradients: dict[int, StepGradients]) -> list[Tensor | None]:
    """Of the cell's weights, then of each layer's; None for layers without a gradient."""
    # A step's state is that of the one before it, if any.
    order = [index for index in of.kept if index in gradients]
    before = dict(zip(list(of.kept)[1:], of.kept, strict=False)) if of.rule.recurrent else {}
    steps = [gradients[index] for index in order]
    kept = [of.kept[index] for index in order]
    has_state = [index in before for index in order]
    results = _weight_gradients(
        [step.preactivations for step in steps],
        [each.projected for each in kept],
        [of.kept[before[index]].hidden for index in order if index in before],
        has_state,
        [step.projected for step in steps],
        [each.normalised for each in kept],
        [step.logits for step in steps],
        [each.hidden for each in kept],
    )
    cell, of_layers = results[:4], iter(results[4:])
    if not any(has_state):
        cell[1] = torch.zeros_like(of.cell.weight_hh)
    places: list[Tensor | None] = [None] * (4 * len(of.layers))
    for index in order:
        places[4 * index : 4 * index + 4] = [next(of_layers) for _ in range(4)]
    return [*cell, *places]


def _of_all_steps(
    preactivations: list[Tensor],
    projected: list[Tensor],
    hidden_before: list[Tensor],
    has_state: list[bool],
    of_projected: list[Tensor],
    normalised: list[Tensor],
    of_logits: list[Tensor],
    hidden: list[Tensor],
) -> list[Tensor]:
    """Of the cell, then weight and bias in and out of each step; see `weight_gradients`."""
    # All steps share the cell: one product over all their images.
    dgates = torch.cat(preactivations)
    dweight_ih = dgates.mT @ torch.cat(projected)
    dbias = dgates.sum(0)
    dweight_hh = dweight_ih
    if hidden_before:
        if not all(has_state):
            pairs = zip(preactivations, has_state, strict=True)
            dgates = torch.cat([each for each, has in pairs if has])
        dweight_hh = dgates.mT @ torch.cat(hidden_before)

    # Projections in and out: one batched product for all of a width.
    into, out = _by_width(of_projected, normalised), _by_width(of_logits, hidden)
    results = [dweight_ih, dweight_hh, dbias, dbias.clone()]
    for pair_in, pair_out in zip(into, out, strict=True):
        results += [*pair_in, *pair_out]
    return results


_weight_gradients = operator("gate_weight_gradients", _of_all_steps)


def _by_width(dys: list[Tensor], xs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Gradients of weight and bias of each linear layer from its dy (N, O) and x (N, I)."""
    widths: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place, (dy, x) in enumerate(zip(dys, xs, strict=True)):
        widths[dy.shape[1], x.shape[1]].append(place)
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for members in widths.values():
        if len(members) == 1:
            dy, x = dys[members[0]], xs[members[0]]
            results[members[0]] = dy.mT @ x, dy.sum(0)
            continue
        dy, x = (torch.stack([each[place] for place in members]) for each in (dys, xs))
        weights, biases = torch.bmm(dy.mT, x).unbind(), dy.sum(1).unbind()
        results |= dict(zip(members, zip(weights, biases, strict=True), strict=True))
    return [results[place] for place in range(len(dys))]
