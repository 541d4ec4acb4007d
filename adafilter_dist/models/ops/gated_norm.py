"""Both BatchNorms of a gated layer, the choice, residual and ReLU, with four passes over memory.

Forward: one over each branch for its statistics, one that normalises, chooses, adds and rectifies.
Backward: one that sums up what all small gradients are made of, one that writes those of both
convolutions' outputs. Kept for backward: what the convolutions gave, and the output, which the
layer behind keeps anyway; nothing normalised, no masks. The next layer's gate looks at the mean of
the output over its pixels: it comes from the same pass, and its gradient goes into the same passes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adafilter_dist.models.ops.norm import Affine, Norm
from adafilter_dist.models.ops.passes import Passes
from adafilter_dist.models.ops.passes_reference import cast


def gated_norm(
    passes: Passes,
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norm1: Norm,
    norm2: Norm,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """G BN1(y1) + (1 - G) BN2(y2) (+ residual), perhaps ReLU, of y (N, C, H, W) and G (N, C).

    Returns that and its mean over the pixels (N, C). Without y2, y1 (N, 2C, H, W) holds the
    channels of both, and so does its gradient. Differentiable once in all tensors but the
    statistics. Gates may be fractions.
    """
    out, mean = _GatedNorm.apply(
        y1,
        y2,
        gates,
        *norm1.affine(),
        *norm2.affine(),
        residual,
        norm1,
        norm2,
        passes,
        relu,
    )
    return out, mean


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y1: Tensor,
        y2: Tensor | None,
        gates: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        residual: Tensor | None,
        norm1: Norm,
        norm2: Norm,
        passes: Passes,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.stacked = y2 is None
        if y2 is None:
            y1, y2 = y1.chunk(2, 1)
        norm1 = replace(norm1, weight=weight1, bias=bias1)
        norm2 = replace(norm2, weight=weight2, bias=bias2)
        a1, a2, b, rstd1, rstd2 = passes.coefficients(gates, norm1, norm2)
        out, mean = passes.blend(y1, y2, a1, a2, b, residual, relu)
        ctx.save_for_backward(
            y1,
            y2,
            out if relu else None,
            gates,
            *(weight1, bias1, weight2, bias2),
            *(norm1.mean, norm2.mean, rstd1, rstd2),
            *(norm1.total, norm2.total),
        )
        ctx.passes, ctx.batch = passes, (norm1.batch, norm2.batch)
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dmean: Tensor | None) -> tuple[Tensor | None, ...]:
        y1, y2, out, gates, *small, total1, total2 = ctx.saved_tensors
        weight1, bias1, weight2, bias2, m1, m2, rstd1, rstd2 = small
        passes: Passes = ctx.passes
        if dout is None:
            dout = torch.zeros_like(y1)
        pixels = y1.shape[2] * y1.shape[3]
        more = None if dmean is None else dmean / pixels
        first = Affine(weight1, bias1, rstd1, ctx.batch[0], total1)
        second = Affine(weight2, bias2, rstd2, ctx.batch[1], total2)
        sums = passes.sums(dout, more, out, y1, y2, m1, m2)
        grads = passes.gradients(gates, *sums, first, second, pixels)
        *dy, dz = passes.spread(
            *(dout, more, out, y1, y2, m1, m2, *grads.first, *grads.second),
            want_residual=ctx.needs_input_grad[7],
            stacked=ctx.stacked,
        )
        dy1, dy2 = (*dy, None)[:2]
        of_affine = (grads.weight1, grads.bias1, grads.weight2, grads.bias2)
        affine = (
            cast(grad, of.dtype)
            for grad, of in zip(of_affine, (weight1, bias1, weight2, bias2), strict=True)
        )
        return dy1, dy2, cast(grads.gates, gates.dtype), *affine, dz, None, None, None, None
