"""A whole gated layer as one node of autograd's graph: gate, convolutions, all that follows.

The same operators as in three nodes (`gate_step`, `stacked_conv`, `layer_triton`), with a third of
what autograd asks of the host around them. For a GPU with Triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adafilter_dist.models.ops import layer_operators
from adafilter_dist.models.ops.gate_step import GateStep, Made
from adafilter_dist.models.ops.layer_triton import ALL, CHOSEN, FIXED, BranchNorm
from adafilter_dist.models.ops.passes_reference import cast
from adafilter_dist.models.ops.stacked_conv import conv_gradients

__all__ = ["ALL", "CHOSEN", "FIXED", "BranchNorm", "Convolution", "gated_layer"]


class Convolution(NamedTuple):
    """Trained filters, both kinds stacked, and how they are moved over x."""

    weight: Tensor
    filters: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]


class _Rest(NamedTuple):
    """What the node takes beside tensors that may need gradients."""

    step: GateStep
    layer: int
    convolution: Convolution
    norms: tuple[BranchNorm, BranchNorm]
    groups: int
    prior: float
    relu: bool


def gated_layer(
    x: Tensor,
    step: GateStep,
    index: int,
    convolution: Convolution,
    norms: tuple[BranchNorm, BranchNorm],
    groups: int,
    prior: float,
    residual: Tensor | None,
    relu: bool,
) -> Made:
    """Layer `index` of x (N, C_in, H, W), which has the filters' dtype; see `layer_triton`."""
    h, c = (None, None) if step.state is None else step.state
    first, second = norms
    affine = (first.weight, first.bias, second.weight, second.bias)
    rest = _Rest(step, index, convolution, norms, groups, prior, relu)
    return Made(
        *_Layer.apply(step.token, step.pooled, h, c, x, convolution.weight, *affine, residual, rest)
    )


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        pooled: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        x: Tensor,
        weight: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        residual: Tensor | None,
        rest: _Rest,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        step, index, convolution, (norm1, norm2), groups, prior, relu = rest

        # The gate's step.
        of, state = step.forward, None if h is None or c is None else (h, c)
        layer = of.layers[index]
        gates, logits, h_next, c_next, kept = of.steps.step(
            pooled, layer, of.cell, state, of.rule, step.shift, step.noise
        )
        of.kept[index] = kept

        # Both convolutions, and what follows them.
        _, filters, stride, padding, dilation = convolution
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                y = F.conv2d(x, filters, None, stride, padding, dilation)
        else:
            y = F.conv2d(x, filters, None, stride, padding, dilation)
        norms = [*norm1.tensors(), *norm2.tensors()]
        kinds, eps = [norm1.kind, norm2.kind], [norm1.eps, norm2.eps]
        of_rows = (norms, norm1.sums, norm2.sums, kinds, eps, groups, prior)
        rows, out, mean, act = layer_operators.forward(y, None, gates, *of_rows, residual, relu)
        affine = (weight1, bias1, weight2, bias2)
        kept_out = act if relu else None
        ctx.save_for_backward(c, x, weight, filters, y, kept_out, kept.gates, *affine, rows)
        # Not all of `rest`, which holds tensors of autograd's graph.
        ctx.of, ctx.index = of, index
        ctx.how = stride, padding, dilation, kinds, groups
        return out, mean, gates, logits, h_next, c_next

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dout, dmean, dgates, dlogits, dh, dc = grads
        c, x, weight, filters, y, act, bits, *affine, rows = ctx.saved_tensors
        stride, padding, dilation, kinds, groups = ctx.how
        of, index, needs = ctx.of, ctx.index, ctx.needs_input_grad

        # What follows the convolutions, and these.
        of_layer: list[Tensor | None] = [None] * 7
        if dout is not None or dmean is not None:
            if dout is None:
                dout = torch.zeros_like(y[:, : bits.shape[1]])
            made = layer_operators.layer_gradients(
                dout, dmean, act, y, None, bits, affine, rows, kinds, groups, needs[10]
            )
            own, dy = cast(made[0], bits.dtype), made[5]
            dgates = own if dgates is None else own + dgates
            small = [cast(grad, of.dtype) for grad, of in zip(made[1:5], affine, strict=True)]
            wanted = [needs[4], needs[5], False]
            of_conv = iter(
                conv_gradients(dy, x, weight, filters, stride, padding, dilation, wanted)
            )
            dx = next(of_conv) if needs[4] else None
            dweight = next(of_conv) if needs[5] else None
            of_layer = [dx, dweight, *small, made[6] if needs[10] else None]

        # The gate's step. The token gets no gradient; its node waits for the layers all the same.
        results = of.steps.gradients(
            (dgates, dlogits, dh, dc), of.kept[index], c, of.layers[index], of.cell
        )
        of.gradients[index] = results
        return None, results.pooled, results.h, results.c, *of_layer, None
