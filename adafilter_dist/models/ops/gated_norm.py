"""Both BatchNorms of a gated layer, the choice, residual and ReLU, with four passes over memory.

Forward: one over each branch for its statistics, one that normalises, chooses, adds and rectifies.
Backward: one that sums up what all small gradients are made of, one that writes those of both
convolutions' outputs. Kept for backward: what the convolutions gave, and the output, which the
layer behind keeps anyway; nothing normalised, no masks. The next layer's gate looks at the mean of
the output over its pixels: it comes from the same pass, and its gradient goes into the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adafilter_dist.models.ops.passes import Passes


@dataclass(frozen=True)
class Norm:
    """A branch's BatchNorm: its affine pair, (C,) each or None, and the statistics it takes.

    `batch`: they are this batch's own, so that the gradient runs through them too.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float
    batch: bool


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
        *_affine(norm1, gates),
        *_affine(norm2, gates),
        residual,
        norm1,
        norm2,
        passes,
        relu,
    )
    return out, mean


def _affine(norm: Norm, gates: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
    return weight, bias


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
        wide = norm1.mean.dtype
        g = gates.to(wide)
        rstd1, rstd2 = (norm1.var + norm1.eps).rsqrt(), (norm2.var + norm2.eps).rsqrt()
        scale1, scale2 = weight1.to(wide) * rstd1, weight2.to(wide) * rstd2
        shift1 = bias1.to(wide) - norm1.mean * scale1
        shift2 = bias2.to(wide) - norm2.mean * scale2
        other = 1 - g
        b = torch.addcmul(other * shift2, g, shift1)
        out, mean = passes.blend(y1, y2, g * scale1, other * scale2, b, residual, relu)
        ctx.save_for_backward(
            y1,
            y2,
            out if relu else None,
            gates,
            *(weight1, bias1, weight2, bias2),
            *(norm1.mean, norm2.mean, rstd1, rstd2),
        )
        ctx.passes, ctx.batch = passes, (norm1.batch, norm2.batch)
        ctx.pixels = y1.shape[0] * y1.shape[2] * y1.shape[3]
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dmean: Tensor | None) -> tuple[Tensor | None, ...]:
        y1, y2, out, gates, weight1, bias1, weight2, bias2, m1, m2, rstd1, rstd2 = ctx.saved_tensors
        passes: Passes = ctx.passes
        wide = m1.dtype
        if dout is None:
            dout = torch.zeros_like(y1)
        more = None if dmean is None else dmean / (y1.shape[2] * y1.shape[3])
        g = gates.to(wide)
        other = 1 - g
        s0, s1, s2 = passes.sums(dout, more, out, y1, y2, m1, m2)
        s1, s2 = s1 * rstd1, s2 * rstd2  # of the gradient times what was normalised
        dgates = (weight1 * s1 - weight2 * s2) + (bias1 - bias2) * s0
        dbias1, dbias2 = (g * s0).sum(0), (other * s0).sum(0)
        dweight1, dweight2 = (g * s1).sum(0), (other * s2).sum(0)
        p1, q1, r1 = _coefficients(weight1 * rstd1, rstd1, g, dweight1, dbias1, ctx, 0)
        p2, q2, r2 = _coefficients(weight2 * rstd2, rstd2, other, dweight2, dbias2, ctx, 1)
        want = ctx.needs_input_grad[7]
        *dy, dz = passes.spread(
            dout,
            *(more, out, y1, y2, m1, m2, p1, q1, r1, p2, q2, r2),
            want_residual=want,
            stacked=ctx.stacked,
        )
        dy1, dy2 = (*dy, None)[:2]
        small = (dweight1, dbias1, dweight2, dbias2)
        affine = (
            grad.to(of.dtype)
            for grad, of in zip(small, (weight1, bias1, weight2, bias2), strict=True)
        )
        return dy1, dy2, dgates.to(gates.dtype), *affine, dz, None, None, None, None


def _coefficients(
    scale: Tensor, rstd: Tensor, g: Tensor, dweight: Tensor, dbias: Tensor, ctx: Any, branch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """p (N, C), q, r (C,) of dy = p dz + q (y - mean) + r, the gradient of a BatchNorm's input."""
    p = g * scale
    if not ctx.batch[branch]:
        return p, torch.zeros_like(rstd), torch.zeros_like(rstd)
    each = scale / ctx.pixels
    return p, -each * rstd * dweight, -each * dbias
