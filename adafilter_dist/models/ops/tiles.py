"""How the Triton kernels of the passes cut up their work: tiles, programs, dtypes of sums."""

from __future__ import annotations

import functools

import torch
import triton.language as tl

from adafilter_dist.models.ops.dtypes import accumulation_dtype

# Programs that sums are dealt out to: six for each of an H100's 132 multiprocessors, as many as fit
# with the 72 to 80 registers a thread of `moments`, so that none is left to run alone at the end. A
# constant, because the order of summation, and so the last bit, follows from it.
_PROGRAMS = 792


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own takes the host as long as half a launch."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def accumulation(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """The dtype of sums over activations of `dtype`, for torch and for Triton."""
    wide = accumulation_dtype(dtype)
    return wide, tl.float64 if wide == torch.float64 else tl.float32


@functools.cache
def tile(dtype: torch.dtype, channels: int, rows: int) -> tuple[int, int]:
    """Rows and columns of a tile: 16 elements for each of 128 threads, few beyond the edge."""
    wasteless = [b for b in (128, 64, 32) if cdiv(channels, b) * b <= 1.25 * channels]
    block_c = wasteless[0] if wasteless else min(next_power_of_2(channels), 128)
    elements = 1024 if dtype == torch.float64 else 2048
    return min(elements // block_c, next_power_of_2(max(rows, 1))), block_c


def grid(images: int, pixels: int, channels: int, block_r: int, block_c: int) -> tuple[int]:
    """One program a tile; no tile spans two images, whose coefficients differ."""
    return (images * cdiv(pixels, block_r) * cdiv(channels, block_c),)


@functools.cache
def shares(rows: int, least: int, others: int) -> tuple[int, int]:
    """Parts to cut `rows` into, of `least` or more rows, and the rows of a part."""
    splits = max(1, min(_PROGRAMS // max(others, 1), rows // least))
    share = max(1, cdiv(rows, splits))
    return max(1, cdiv(rows, share)), share
