"""What the operators of a gated layer allocate and launch, by shapes and layouts: prepared once.

All layers of a shape share a plan. A plan is None where a tensor's layout is no row of channels a
pixel: it has to be copied first. Importing this needs triton.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from adafilter_dist.errors import UserError
from adafilter_dist.models.ops import coefficients_kernels as coefficients
from adafilter_dist.models.ops import passes_kernels as passes
from adafilter_dist.models.ops.launches import Launch
from adafilter_dist.models.ops.pixel_rows import row_stride
from adafilter_dist.models.ops.tiles import (
    accumulation,
    cdiv,
    grid,
    next_power_of_2,
    shares,
    tile,
)

Shape = tuple[int, ...]
_BLOCK_N, _BLOCK_C = 16, 64
# Of shapes. Steps of a run have a few dozen; a plan is small.
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Statistics:
    """Moments of one tensor or of two, then the rows of both branches."""

    rows: Shape
    moments: int
    wide: torch.dtype
    first: Launch
    second: Launch
    both: Launch


@dataclass(frozen=True, slots=True)
class Choice:
    """The layer's output, and the means of shares of its pixels."""

    out: tuple[Shape, Shape]
    mean: Shape
    wide: torch.dtype
    splits: int
    launch: Launch


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums over pixels, small gradients, and those of pixels."""

    gates: Shape
    channels: int
    dy: tuple[Shape, Shape]
    residual: tuple[Shape, Shape]
    work: int
    sums: Launch
    small: Launch
    spread: Launch


@functools.lru_cache(maxsize=_KEPT)
def statistics(
    shape: Shape,
    layout1: Shape,
    layout2: Shape | None,
    channels: int,
    dtype: torch.dtype,
    kinds: tuple[int, int],
    eps: tuple[float, float],
    groups: int,
    prior: float,
) -> Statistics | None:
    """For y1 of `shape` and `layout1`, and y2 of `layout2`, if any; `channels` of a branch."""
    images, width, height, columns = shape
    pixels = height * columns
    if images * pixels == 0:
        raise UserError(f"moments of an empty tensor {tuple(shape)}: allowed is 1 pixel or more")
    stride1 = row_stride(shape, layout1)
    stride2 = stride1 if layout2 is None else row_stride(shape, layout2)
    if stride1 is None or stride2 is None:
        return None
    wide, accumulate = accumulation(dtype)
    of_both = {"ACC": accumulate, "enable_fp_fusion": True}

    # Moments of shares of each image's pixels; where both branches are one tensor, in one go.
    block_r, block_c = tile(dtype, width, pixels)
    others = images * cdiv(width, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    apart = images * splits * width
    blocks = of_both | {"BLOCK_R": block_r, "BLOCK_C": block_c}
    first, second = (
        Launch(
            passes.moments_kernel,
            splits * others,
            (pixels, width, stride, splits, share, start, apart),
            blocks,
        )
        for stride, start in ((stride1, 0), (stride2, 2 * apart))
    )

    # All of a group's shares are summed by each program.
    per = images // groups
    block_r, block_c = min(256, next_power_of_2(per * splits)), 8
    begins = channels if layout2 is None else 2 * apart
    both = Launch(
        coefficients.statistics_kernel,
        2 * cdiv(channels, block_c),
        (width, apart, begins, groups, per, pixels, channels, splits, share),
        of_both
        | {"PRIOR": prior, "EPS1": eps[0], "EPS2": eps[1], "KIND1": kinds[0], "KIND2": kinds[1]}
        | {"BLOCK_R": block_r, "BLOCK_C": block_c},
    )
    size = 2 * apart if layout2 is None else 4 * apart
    return Statistics((10, groups, channels), size, wide, first, second, both)


@functools.lru_cache(maxsize=_KEPT)
def choice(
    shape: Shape,
    layouts: tuple[Shape, Shape | None, Shape | None],
    channels: int,
    dtype: torch.dtype,
    groups: int,
    relu: bool,
) -> Choice | None:
    """For y1 of `shape`; `layouts` are those of y1, of y2 and of the residual, if any."""
    images, _, height, columns = shape
    layout1, layout2, layout3 = layouts
    one = (images, channels, height, columns)
    stride1 = row_stride(shape, layout1)
    stride2 = stride1 if layout2 is None else row_stride(one, layout2)
    stride3 = 0 if layout3 is None else row_stride(one, layout3)
    if stride1 is None or stride2 is None or stride3 is None:
        return None
    wide, accumulate = accumulation(dtype)
    pixels = height * columns
    block_r, block_c = tile(dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    second = channels if layout2 is None else 0
    strides = (stride1, stride2, second, stride3)
    launch = Launch(
        passes.choose_kernel,
        others * splits,
        (images, groups, pixels, channels, *strides, splits, share),
        {
            "RESIDUAL": layout3 is not None,
            "RELU": relu,
            "ACC": accumulate,
            "BLOCK_R": block_r,
            "BLOCK_C": block_c,
            "enable_fp_fusion": True,
        },
    )
    mean = (images, channels) if splits == 1 else (splits, images, channels)
    return Choice(_rows(one), mean, wide, splits, launch)


@functools.lru_cache(maxsize=_KEPT)
def gradients(
    shape: Shape,
    layouts: tuple[Shape, Shape | None, Shape, Shape | None],
    channels: int,
    dtype: torch.dtype,
    kinds: tuple[int, int],
    groups: int,
    want_residual: bool,
    has_more: bool,
) -> Gradients | None:
    """For y1 of `shape`; `layouts` are those of y1, y2, dout and the output that ReLU cut.

    y2 and that output may be missing. `has_more`: the mean over pixels has a gradient too.
    """
    images, width, height, columns = shape
    layout1, layout2, layout_dout, layout_out = layouts
    one = (images, channels, height, columns)
    stride1 = row_stride(shape, layout1)
    stride2 = stride1 if layout2 is None else row_stride(one, layout2)
    stride_dout = row_stride(one, layout_dout)
    stride_out = 0 if layout_out is None else row_stride(one, layout_out)
    if stride1 is None or stride2 is None or stride_dout is None or stride_out is None:
        return None
    accumulate = accumulation(dtype)[1]
    pixels, per = height * columns, images // groups
    block_r, block_c = tile(dtype, channels, pixels)
    others = images * cdiv(channels, block_c)
    splits, share = shares(pixels, 4 * block_r, others)
    at_qr = splits * 3 * images * channels
    second = channels if layout2 is None else 0
    strides = (stride_dout, stride_out, stride1, stride2, second)
    of_kinds = {"KIND1": kinds[0], "KIND2": kinds[1]}
    flags = {"MORE": has_more, "RELU": layout_out is not None}
    blocks = {"ACC": accumulate, "BLOCK_R": block_r, "BLOCK_C": block_c, "enable_fp_fusion": True}
    return Gradients(
        gates=(images, channels),
        channels=channels,
        dy=_rows(shape),
        residual=_rows(one),
        work=at_qr + 4 * groups * channels,
        sums=Launch(
            passes.sums_kernel,
            others * splits,
            (images, groups, pixels, channels, *strides, splits, share),
            flags | blocks,
        ),
        small=Launch(
            coefficients.gradients_kernel,
            cdiv(channels, _BLOCK_C),
            (groups, per, pixels, channels, splits, at_qr),
            of_kinds | {"ACC": accumulate, "BLOCK_N": _BLOCK_N, "BLOCK_C": _BLOCK_C},
        ),
        spread=Launch(
            passes.spread_kernel,
            math.prod(grid(images, pixels, channels, block_r, block_c)),
            (images, groups, pixels, channels, *strides, width, second, at_qr),
            of_kinds | flags | {"RESIDUAL": want_residual} | blocks,
        ),
    )


def _rows(shape: Shape) -> tuple[Shape, Shape]:
    """`shape` (N, C, H, W) and the strides of channels-last."""
    _, channels, height, width = shape
    return tuple(shape), (height * width * channels, 1, width * channels, channels)
