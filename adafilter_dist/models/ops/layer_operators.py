"""The operators of a gated layer in Triton: what they allocate and launch.

For CUDA tensors, channels-last or halves of a stacked tensor (others are copied first). No atomics:
two runs give the same bits. Importing this needs triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adafilter_dist.errors import UserError
from adafilter_dist.models.ops import coefficients_kernels as coefficients
from adafilter_dist.models.ops import passes_kernels as passes
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.operators import operator
from adafilter_dist.models.ops.pixel_rows import empty_rows, pixel_rows
from adafilter_dist.models.ops.tiles import accumulation, cdiv, grid, next_power_of_2, shares, tile

__all__ = ["choose", "forward", "layer_gradients", "statistics"]
_BLOCK_N, _BLOCK_C = 16, 64


def _statistics(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norms: list[Tensor],
    sums1: Tensor,
    sums2: Tensor,
    kinds: list[int],
    eps: list[float],
    groups: int,
    prior: float,
) -> Tensor:
    images, channels = gates.shape
    pixels = y1.shape[2] * y1.shape[3]
    if images * pixels == 0:
        raise UserError(f"moments of an empty tensor {tuple(y1.shape)}: allowed is 1 pixel or more")
    wide, accumulate = accumulation(y1.dtype)
    rows = torch.empty(10, groups, channels, dtype=wide, device=y1.device)
    with torch.cuda.device_of(y1):
        # Moments of shares of each image's pixels; where both branches are one tensor, in one go.
        ys = [y1] if y2 is None else [y1, y2]
        width = y1.shape[1]
        block_r, block_c = tile(y1.dtype, width, pixels)
        others = images * cdiv(width, block_c)
        splits, share = shares(pixels, 4 * block_r, others)
        parts = images * splits
        made = torch.empty(2 * len(ys), parts, width, dtype=torch.float64, device=y1.device)
        moments = list(made.unbind())
        for number, y in enumerate(ys):
            y, stride = pixel_rows(y)
            passes.moments_kernel[(splits * others,)](
                y,
                moments[2 * number],
                moments[2 * number + 1],
                pixels,
                width,
                stride,
                splits,
                share,
                ACC=accumulate,
                BLOCK_R=block_r,
                BLOCK_C=block_c,
                enable_fp_fusion=True,
            )
        if y2 is None:
            moments += [each[:, channels:] for each in moments]
        per = images // groups
        block_r, block_c = min(256, next_power_of_2(per * splits)), 8
        first, second = norms[:4], norms[4:]
        coefficients.statistics_kernel[(2 * cdiv(channels, block_c),)](
            *moments,
            width,
            gates.contiguous(),
            *first,
            sums1,
            *second,
            sums2,
            rows,
            groups,
            per,
            pixels,
            channels,
            splits,
            share,
            PRIOR=prior,
            EPS1=eps[0],
            EPS2=eps[1],
            KIND1=kinds[0],
            KIND2=kinds[1],
            ACC=accumulate,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return rows


def _empty_statistics(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norms: list[Tensor],
    sums1: Tensor,
    sums2: Tensor,
    kinds: list[int],
    eps: list[float],
    groups: int,
    prior: float,
) -> Tensor:
    return y1.new_empty(10, groups, gates.shape[1], dtype=accumulation_dtype(y1.dtype))


def _choose(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    rows: Tensor,
    residual: Tensor | None,
    groups: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    images, channels = gates.shape
    pixels = y1.shape[2] * y1.shape[3]
    out = empty_rows(y1, channels)
    y1, y2, stride1, stride2 = _halves(y1, y2, channels)
    third, stride_residual = (y1, 0) if residual is None else pixel_rows(residual)
    wide, accumulate = accumulation(y1.dtype)
    block_r, block_c = tile(y1.dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    shape = (images, channels) if splits == 1 else (splits, images, channels)
    partial = torch.empty(shape, dtype=wide, device=y1.device)
    with torch.cuda.device_of(y1):
        passes.choose_kernel[(others * splits,)](
            y1,
            y2,
            gates.contiguous(),
            rows,
            third,
            out,
            partial,
            images,
            groups,
            pixels,
            channels,
            stride1,
            stride2,
            stride_residual,
            splits,
            share,
            RESIDUAL=residual is not None,
            RELU=relu,
            ACC=accumulate,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return out, partial if splits == 1 else partial.sum(0)


def _empty_choice(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    rows: Tensor,
    residual: Tensor | None,
    groups: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    return empty_rows(y1, gates.shape[1]), gates.new_empty(gates.shape, dtype=rows.dtype)


def _layer_gradients(
    dout: Tensor,
    dmean: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    affine: list[Tensor],
    rows: Tensor,
    kinds: list[int],
    groups: int,
    want_residual: bool,
) -> list[Tensor]:
    results = _empty_gradients(y1, y2, gates, rows, want_residual)
    dgates, dweight1, dbias1, dweight2, dbias2, *large = results
    images, channels = gates.shape
    pixels = y1.shape[2] * y1.shape[3]
    per = images // groups
    if y2 is None:
        (dy1, dy2), stride_dy = large[0].split(channels, 1), 2 * channels
    else:
        (dy1, dy2), stride_dy = large[:2], channels
    dout, stride_dout = pixel_rows(dout)
    act, stride_out = (dout, 0) if out is None else pixel_rows(out)
    y1, y2, stride1, stride2 = _halves(y1, y2, channels)
    gates = gates.contiguous()
    wide, accumulate = accumulation(y1.dtype)
    block_r, block_c = tile(y1.dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    partial = torch.empty(splits, 3, images, channels, dtype=wide, device=y1.device)
    qr = torch.empty(4, groups, channels, dtype=wide, device=y1.device)
    more = rows if dmean is None else dmean.contiguous()
    with torch.cuda.device_of(y1):
        passes.sums_kernel[(others * splits,)](
            dout,
            more,
            act,
            y1,
            y2,
            rows[0],
            rows[5],
            partial,
            images,
            per,
            pixels,
            channels,
            stride_dout,
            stride_out,
            stride1,
            stride2,
            splits,
            share,
            MORE=dmean is not None,
            RELU=out is not None,
            ACC=accumulate,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
        coefficients.gradients_kernel[(cdiv(channels, _BLOCK_C),)](
            gates,
            partial if splits == 1 else partial.sum(0),
            rows,
            *affine,
            dgates,
            dweight1,
            dbias1,
            dweight2,
            dbias2,
            qr,
            groups,
            per,
            pixels,
            channels,
            KIND1=kinds[0],
            KIND2=kinds[1],
            ACC=accumulate,
            BLOCK_N=_BLOCK_N,
            BLOCK_C=_BLOCK_C,
        )
        passes.spread_kernel[grid(images, pixels, channels, block_r, block_c)](
            dout,
            more,
            act,
            y1,
            y2,
            gates,
            rows,
            qr,
            dy1,
            dy2,
            large[-1],
            images,
            groups,
            pixels,
            channels,
            stride_dout,
            stride_out,
            stride1,
            stride2,
            stride_dy,
            KIND1=kinds[0],
            KIND2=kinds[1],
            MORE=dmean is not None,
            RELU=out is not None,
            RESIDUAL=want_residual,
            ACC=accumulate,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return results


def _like_gradients(
    dout: Tensor,
    dmean: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    affine: list[Tensor],
    rows: Tensor,
    kinds: list[int],
    groups: int,
    want_residual: bool,
) -> list[Tensor]:
    return _empty_gradients(y1, y2, gates, rows, want_residual)


def _empty_gradients(
    y1: Tensor, y2: Tensor | None, gates: Tensor, rows: Tensor, want_residual: bool
) -> list[Tensor]:
    """Of gates and both affine pairs, dy (stacked) or dy1 and dy2, perhaps of the residual."""
    channels = gates.shape[1]
    small = [rows.new_empty(gates.shape), *(rows.new_empty(channels) for _ in range(4))]
    widths = [2 * channels] if y2 is None else [channels, channels]
    return small + [empty_rows(y1, each) for each in widths + [channels] * want_residual]


def _halves(y1: Tensor, y2: Tensor | None, channels: int) -> tuple[Tensor, Tensor, int, int]:
    """Both branches' outputs as rows of pixels, and the strides from pixel to pixel."""
    if y2 is None:
        y1, stride = pixel_rows(y1)
        y1, y2 = y1.split(channels, 1)
        return y1, y2, stride, stride
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2)
    return y1, y2, stride1, stride2


def _forward(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norms: list[Tensor],
    sums1: Tensor,
    sums2: Tensor,
    kinds: list[int],
    eps: list[float],
    groups: int,
    prior: float,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _statistics(y1, y2, gates, norms, sums1, sums2, kinds, eps, groups, prior)
    return rows, *_choose(y1, y2, gates, rows, residual, groups, relu)


_SUMS = ("sums1", "sums2")
statistics = operator("layer_statistics", _statistics, _empty_statistics, mutates=_SUMS)
"""`rows` of `coefficients_kernels`, from y1 (N, 2C, H, W), or y1 and y2 (N, C, H, W).

`norms` are weight, bias, running mean and variance of the tuned branch, then of the frozen one.
"""
choose = operator("choose", _choose, _empty_choice)
"""The layer's output (N, C, H, W) and its mean over the pixels (N, C)."""
forward = operator("layer_forward", _forward, mutates=_SUMS)
"""Both at once: rows, output and mean."""
layer_gradients = operator("layer_gradients", _layer_gradients, _like_gradients)
"""Of gates and both affine pairs, dy (stacked) or dy1 and dy2, perhaps of the residual."""
