"""The four passes of a gated layer over its activations, in plain PyTorch: what kernels must equal.

A gated layer computes y1 = F x and y2 = S x, (N, C, H, W) each, normalises both over the batch and
chooses by its gates. Whatever touches (N, C, H, W) in that, forward and backward, is one of these
passes; all else is arithmetic on (C,) and (N, C) tensors: `coefficients` before the blend and
`gradients` before the spread. Any dense layout is accepted, also the two channel halves of one
stacked tensor. Sums and coefficients are float32, float64 for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.norm import Affine, Choosers, ChosenMoments, Gradients, Norm


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`; x itself where that is its own.

    In an autograd.Function that torch 2.11 compiles, the output of a `to` or `contiguous` that does
    nothing gets no gradient: zero, without a word.
    """
    return x if x.dtype == dtype else x.to(dtype)


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over images and pixels: y (N, C, H, W) -> (C,) each."""
    var, mean = torch.var_mean(_wide(y), (0, 2, 3), correction=0)
    return mean, var


def chosen_moments(y: Tensor, choosers: Choosers) -> ChosenMoments:
    """Mean and variance over the images that chose each filter, of y (N, C, H, W).

    Differentiable in y.
    """
    wide = _wide(y)
    vars_, means = torch.var_mean(wide, (2, 3), correction=0)  # of each image
    weights = cast(choosers.gates, wide.dtype)
    weights = weights if choosers.tuned else 1 - weights
    running = cast(choosers.mean, wide.dtype), cast(choosers.var, wide.dtype)

    # Of the choosers alone; zero where there are none.
    total = weights.sum(0)
    share, safe = total / len(y), total.where(total > 0, 1)
    mean = (weights * means).sum(0) / safe
    var = (weights * (vars_ + (means - mean).square())).sum(0) / safe

    # With the running statistics. As a step from the choosers' own: exactly theirs if all chose,
    # exactly the running ones if none did.
    added = (choosers.prior * (1 - share)).clamp(min=0)
    part, off = added / (total + added), running[0] - mean
    taken_var = var + part * (running[1] - var) + part * (1 - part) * off.square()
    taken = torch.stack((mean + part * off, taken_var.clamp(min=0), total + added))

    # A single value has no variance: then the running one stays.
    count = total * (y.shape[2] * y.shape[3])
    unbiased = torch.where(count > 1, var * (count / (count - 1).clamp(min=1)), running[1])
    return ChosenMoments(taken, torch.stack((share * mean, share * unbiased, share)).detach())


def coefficients(
    gates: Tensor, norm1: Norm, norm2: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """a1, a2, b (N, C) of `blend`, and 1 / standard deviation of both branches (C,).

    So that a1 y1 + a2 y2 + b is G BN1(y1) + (1 - G) BN2(y2), for gates G (N, C).
    """
    g = cast(gates, norm1.mean.dtype)
    rstd1, scale1, shift1 = _scale_and_shift(norm1)
    rstd2, scale2, shift2 = _scale_and_shift(norm2)
    other = 1 - g
    b = torch.addcmul(other * shift2, g, shift1)
    return g * scale1, other * scale2, b, rstd1, rstd2


def gradients(
    gates: Tensor,
    s0: Tensor,
    s1: Tensor,
    s2: Tensor,
    first: Affine,
    second: Affine,
    pixels: int,
) -> Gradients:
    """All small gradients, and the coefficients of `spread`, from `sums` over an image's pixels."""
    g = cast(gates, s0.dtype)
    other = 1 - g
    s1, s2 = s1 * first.rstd, s2 * second.rstd  # of the gradient times what was normalised
    dgates = (first.weight * s1 - second.weight * s2) + (first.bias - second.bias) * s0
    dweight1, dbias1 = (g * s1).sum(0), (g * s0).sum(0)
    dweight2, dbias2 = (other * s2).sum(0), (other * s0).sum(0)
    pqr1 = _gradient_of_input(first, g, dweight1, dbias1, pixels)
    pqr2 = _gradient_of_input(second, other, dweight2, dbias2, pixels)
    return Gradients(dgates, dweight1, dbias1, dweight2, dbias2, pqr1, pqr2)


def blend(
    y1: Tensor,
    y2: Tensor,
    a1: Tensor,
    a2: Tensor,
    b: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """a1 y1 + a2 y2 + b (+ residual), then perhaps ReLU, and its mean; a1, a2, b (N, C).

    A coefficient of exactly 0 leaves its term out, whatever stands there (infinity, NaN). Returns
    (N, C, H, W), channels-last, in y1's dtype, and that one's mean over pixels (N, C).
    """
    out = _term(a1, y1) + _term(a2, y2) + _over_pixels(b)
    if residual is not None:
        out = out + _wide(residual)
    if relu:
        out = out.relu()
    out = _narrow(out, y1.dtype)
    return out, _wide(out).mean((2, 3))


def sums(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the pixels of each image of dz, dz (y1 - m1) and dz (y2 - m2): (N, C) each.

    m1, m2 (C,). dz is dout + more, which is (N, C) and the same for all pixels; 0 where out <= 0 (a
    ReLU was applied), unless `out` is None.
    """
    dz = _before_relu(dout, more, out)
    s0 = dz.sum((2, 3))
    s1 = (dz * _centred(y1, m1)).sum((2, 3))
    s2 = (dz * _centred(y2, m2)).sum((2, 3))
    return s0, s1, s2


def spread(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
    p1: Tensor,
    q1: Tensor,
    r1: Tensor,
    p2: Tensor,
    q2: Tensor,
    r2: Tensor,
    *,
    want_residual: bool = False,
    stacked: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of both convolutions' outputs: dy_k = p_k dz + q_k (y_k - m_k) + r_k.

    p, q, r (N, C), or q, r (C,) that all images share; m (C,); dz as in `sums`. Returns (dy1, dy2,
    dz) or, stacked, (dy, dz) with dy (N, 2C, H, W) holding dy1's channels, then dy2's; dz, the
    residual's gradient, is None unless wanted. Channels-last, in y1's dtype.
    """
    dz = _before_relu(dout, more, out)
    dy1 = _over_pixels(p1) * dz + _over_pixels(q1) * _centred(y1, m1) + _over_pixels(r1)
    dy2 = _over_pixels(p2) * dz + _over_pixels(q2) * _centred(y2, m2) + _over_pixels(r2)
    residual = _narrow(dz, y1.dtype) if want_residual else None
    if stacked:
        return _narrow(torch.cat((dy1, dy2), 1), y1.dtype), residual
    return _narrow(dy1, y1.dtype), _narrow(dy2, y1.dtype), residual


def _scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = (cast(each, norm.mean.dtype) for each in norm.affine())
    rstd = (norm.var + norm.eps).rsqrt()
    scale = weight * rstd
    return rstd, scale, bias - norm.mean * scale


def _gradient_of_input(
    of: Affine, weights: Tensor, dweight: Tensor, dbias: Tensor, pixels: int
) -> tuple[Tensor, Tensor, Tensor]:
    scale = of.weight * of.rstd
    if not of.batch:
        return weights * scale, torch.zeros_like(weights), torch.zeros_like(weights)
    each = scale / ((len(weights) if of.total is None else of.total) * pixels)
    q, r = -each * of.rstd * dweight, -each * dbias
    if of.total is None:
        return weights * scale, q.expand_as(weights), r.expand_as(weights)
    return weights * scale, weights * q, weights * r


def _wide(y: Tensor) -> Tensor:
    return cast(y, accumulation_dtype(y.dtype))


def _narrow(y: Tensor, dtype: torch.dtype) -> Tensor:
    y = cast(y, dtype)
    if y.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)


def _over_pixels(coefficient: Tensor) -> Tensor:
    """(N, C) or (C,) as it multiplies (N, C, H, W)."""
    return coefficient[..., None, None]


def _term(a: Tensor, y: Tensor) -> Tensor:
    a = _over_pixels(a)
    return torch.where(a == 0, 0, a * _wide(y))


def _centred(y: Tensor, mean: Tensor) -> Tensor:
    return _wide(y) - _over_pixels(mean)


def _before_relu(dout: Tensor, more: Tensor | None, out: Tensor | None) -> Tensor:
    dz = _wide(dout) if more is None else _wide(dout) + _over_pixels(more)
    return dz if out is None else torch.where(out > 0, dz, 0)
