"""The four passes of a gated layer as Triton kernels; what they compute: `passes_reference`.

For CUDA tensors, channels-last or halves of a stacked tensor (others are copied first). Every pass
reads and writes each activation once and is one operator to torch.compile. No atomics: sums are
partial sums in a fixed order, so two runs give the same bits. Importing this needs triton.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from adafilter_dist.errors import UserError
from adafilter_dist.models.ops import passes_kernels as kernels
from adafilter_dist.models.ops.coefficients_triton import coefficients, gradients
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.norm import Choosers, ChosenMoments
from adafilter_dist.models.ops.pixel_rows import empty_rows, pixel_rows
from adafilter_dist.models.ops.tiles import accumulation, cdiv, grid, next_power_of_2, shares, tile

__all__ = ["blend", "chosen_moments", "coefficients", "gradients", "moments", "spread", "sums"]


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over images and pixels: y (N, C, H, W) -> (C,) each.

    Raises UserError where there is nothing to average.
    """
    mean, var = _moments(y)
    return mean, var


def chosen_moments(y: Tensor, choosers: Choosers) -> ChosenMoments:
    """Mean and variance over the images that chose each filter, of y (N, C, H, W).

    Raises UserError where there is nothing to average.
    """
    given = (choosers.gates, choosers.mean, choosers.var)
    taken, sums = _chosen_moments(y, *given, choosers.tuned, choosers.prior).split(3)
    return ChosenMoments(taken, sums)


def blend(
    y1: Tensor,
    y2: Tensor,
    a1: Tensor,
    a2: Tensor,
    b: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """a1 y1 + a2 y2 + b (+ residual), then perhaps ReLU, and its mean; a1, a2, b (N, C)."""
    out, mean = _blend(y1, y2, a1, a2, b, residual, relu)
    return out, mean


def sums(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the pixels of each image of dz, dz (y1 - m1) and dz (y2 - m2): (N, C) each."""
    s0, s1, s2 = _sums(dout, more, out, y1, y2, m1, m2).unbind()
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

    p, q, r (N, C), or q, r (C,) that all images share. Returns (dy1, dy2, dz) or, stacked,
    (dy, dz); dz is None unless wanted.
    """
    of_image = [each.expand(y1.shape[:2]) for each in (p1, q1, r1, p2, q2, r2)]
    small = [m1, m2, *of_image]
    results = _spread(dout, more, out, y1, y2, small, want_residual, stacked)
    residual = results[-1] if want_residual else None
    return (results[0], residual) if stacked else (results[0], results[1], residual)


@custom_op("adafilter::moments", mutates_args=())
def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    images, channels, height, width = y.shape
    rows = images * height * width
    wide, _ = accumulation(y.dtype)
    mean, var = (torch.empty(channels, dtype=wide, device=y.device) for _ in range(2))
    partial, splits, share = _partial_moments(y, 1, rows)
    with torch.cuda.device_of(y):
        block_r, block_c = min(256, next_power_of_2(splits)), 8
        kernels.combine_kernel[(cdiv(channels, block_c),)](
            partial[0],
            partial[1],
            mean,
            var,
            rows,
            channels,
            share,
            splits,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return mean, var


@_moments.register_fake
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(y.dtype)
    return y.new_empty(y.shape[1], dtype=wide), y.new_empty(y.shape[1], dtype=wide)


@custom_op("adafilter::chosen_moments", mutates_args=())
def _chosen_moments(
    y: Tensor, gates: Tensor, mean: Tensor, var: Tensor, tuned: bool, prior: float
) -> Tensor:
    images, channels, height, width = y.shape
    pixels = height * width
    wide, _ = accumulation(y.dtype)
    to = torch.empty(6, channels, dtype=wide, device=y.device)
    partial, splits, share = _partial_moments(y, images, pixels)
    block_r, block_c = min(256, next_power_of_2(images * splits)), 8
    with torch.cuda.device_of(y):
        kernels.choosers_kernel[(cdiv(channels, block_c),)](
            partial[0],
            partial[1],
            *(each.contiguous() for each in (gates, mean, var)),
            to,
            images,
            pixels,
            channels,
            splits,
            share,
            prior,
            TUNED=tuned,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return to


@_chosen_moments.register_fake
def _(y: Tensor, gates: Tensor, mean: Tensor, var: Tensor, tuned: bool, prior: float) -> Tensor:
    return y.new_empty(6, y.shape[1], dtype=accumulation_dtype(y.dtype))


def _partial_moments(y: Tensor, images: int, pixels: int) -> tuple[Tensor, int, int]:
    """Moments of shares of each image's pixels, (2, images * splits, C); splits; a share's size."""
    channels = y.shape[1]
    if images * pixels == 0:
        raise UserError(f"moments of an empty tensor {tuple(y.shape)}: allowed is 1 pixel or more")
    y, stride = pixel_rows(y)
    block_r, block_c = tile(y.dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    partial = torch.empty(2, images * splits, channels, dtype=torch.float64, device=y.device)
    with torch.cuda.device_of(y):
        kernels.moments_kernel[(splits * others,)](
            y,
            partial[0],
            partial[1],
            pixels,
            channels,
            stride,
            splits,
            share,
            ACC=accumulation(y.dtype)[1],
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return partial, splits, share


@custom_op("adafilter::blend", mutates_args=())
def _blend(
    y1: Tensor, y2: Tensor, a1: Tensor, a2: Tensor, b: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    images, channels, height, width = y1.shape
    pixels = height * width
    out = empty_rows(y1, channels)
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2)
    third, stride_residual = (y1, 0) if residual is None else pixel_rows(residual)
    wide, accumulate = accumulation(y1.dtype)
    block_r, block_c = tile(y1.dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    partial = torch.empty(splits, images, channels, dtype=wide, device=y1.device)
    with torch.cuda.device_of(y1):
        kernels.blend_kernel[(others * splits,)](
            y1,
            y2,
            a1.contiguous(),
            a2.contiguous(),
            b.contiguous(),
            third,
            out,
            partial,
            images,
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
    return out, partial.sum(0) / pixels


@_blend.register_fake
def _(
    y1: Tensor, y2: Tensor, a1: Tensor, a2: Tensor, b: Tensor, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    mean = y1.new_empty(y1.shape[:2], dtype=accumulation_dtype(y1.dtype))
    return empty_rows(y1, y1.shape[1]), mean


@custom_op("adafilter::sums", mutates_args=())
def _sums(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
) -> Tensor:
    images, channels, height, width = y1.shape
    pixels = height * width
    dout, stride_dout = pixel_rows(dout)
    act, stride_out = (dout, 0) if out is None else pixel_rows(out)
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2)
    wide, accumulate = accumulation(y1.dtype)
    block_r, block_c = tile(y1.dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    partial = torch.empty(splits, 3, images, channels, dtype=wide, device=y1.device)
    with torch.cuda.device_of(y1):
        kernels.sums_kernel[(others * splits,)](
            dout,
            m1 if more is None else more.contiguous(),
            act,
            y1,
            y2,
            m1.contiguous(),
            m2.contiguous(),
            partial,
            images,
            images,
            pixels,
            channels,
            stride_dout,
            stride_out,
            stride1,
            stride2,
            splits,
            share,
            MEAN=False,
            MORE=more is not None,
            RELU=out is not None,
            ACC=accumulate,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return partial[0] if splits == 1 else partial.sum(0)


@_sums.register_fake
def _(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
) -> Tensor:
    return y1.new_empty(3, *y1.shape[:2], dtype=accumulation_dtype(y1.dtype))


@custom_op("adafilter::spread", mutates_args=())
def _spread(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    small: list[Tensor],
    want_residual: bool,
    stacked: bool,
) -> list[Tensor]:
    images, channels, height, width = y1.shape
    pixels = height * width
    results = _empty_gradients(y1, want_residual, stacked)
    dy1, dy2 = results[0].split(channels, 1) if stacked else results[:2]
    dout, stride_dout = pixel_rows(dout)
    act, stride_out = (dout, 0) if out is None else pixel_rows(out)
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2)
    block_r, block_c = tile(y1.dtype, channels, pixels)
    with torch.cuda.device_of(y1):
        kernels.spread_kernel[grid(images, pixels, channels, block_r, block_c)](
            dout,
            small[0] if more is None else more.contiguous(),
            act,
            y1,
            y2,
            *(each.contiguous() for each in small),
            dy1,
            dy2,
            results[-1],
            pixels,
            channels,
            stride_dout,
            stride_out,
            stride1,
            stride2,
            2 * channels if stacked else channels,
            MORE=more is not None,
            RELU=out is not None,
            RESIDUAL=want_residual,
            ACC=accumulation(y1.dtype)[1],
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            enable_fp_fusion=True,
        )
    return results


@_spread.register_fake
def _(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    small: list[Tensor],
    want_residual: bool,
    stacked: bool,
) -> list[Tensor]:
    return _empty_gradients(y1, want_residual, stacked)


def _empty_gradients(y: Tensor, want_residual: bool, stacked: bool) -> list[Tensor]:
    channels = y.shape[1]
    shapes = [2 * channels] if stacked else [channels, channels]
    return [empty_rows(y, each) for each in shapes + [channels] * want_residual]
