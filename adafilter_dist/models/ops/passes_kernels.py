"""Triton kernels of the four passes of a gated layer over memory; `layer_operators` launches them.

A tile is BLOCK_R rows (pixels) by BLOCK_C columns (channels). Names: r pixels, c channels, n
images; stride, from a pixel to the next. Row numbers are int64, as an offset may pass 2^31. Images
come in groups, the micro-batches of a forward, each with statistics of its own: `rows` and `qr` are
those of `coefficients_kernels`. `second` is where the frozen branch begins in its tensor: at
channel C of what holds both, else at 0. What the kernels must equal: `passes_reference`, group by
group.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Whose statistics a branch takes: all images', those of the images that chose the filter, or the
# running ones.
ALL: tl.constexpr = tl.constexpr(0)
CHOSEN: tl.constexpr = tl.constexpr(1)
FIXED: tl.constexpr = tl.constexpr(2)


@triton.jit
def _columns(channels: int, BLOCK_C: tl.constexpr) -> tl.tuple:
    """This program's channels, which of them exist, and the number of its other coordinates."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    c = (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c, c < channels, pid // blocks


@triton.jit
def _load_rows(
    y: tl.tensor, rows: tl.tensor, stride: int, c: tl.tensor, mask: tl.tensor, ACC: tl.constexpr
) -> tl.tensor:
    return tl.load(y + rows[:, None] * stride + c[None, :], mask=mask, other=0).to(ACC)


@triton.jit
def _store_rows(
    y: tl.tensor, rows: tl.tensor, stride: int, c: tl.tensor, mask: tl.tensor, value: tl.tensor
) -> None:
    tl.store(y + rows[:, None] * stride + c[None, :], value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _row(tensor: tl.tensor, at: tl.tensor, in_c: tl.tensor, ACC: tl.constexpr) -> tl.tensor:
    return tl.load(tensor + at, mask=in_c, other=0).to(ACC)


@triton.jit
def moments_kernel(
    y: tl.tensor,
    moments: tl.tensor,
    pixels: tl.int64,
    channels: int,
    stride: int,
    splits: int,
    share: int,
    begin: tl.int64,
    apart: tl.int64,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Mean and sum of squared distances from it, over `share` pixels of one image.

    They go to moments from `begin` on, the sums `apart` from the means.
    """
    c, in_c, part = _columns(channels, BLOCK_C)
    start = (part % splits).to(tl.int64) * share
    first = (part // splits).to(tl.int64) * pixels + start
    lane = tl.arange(0, BLOCK_R)
    # The distance from the first row is exact where y is far from zero. Of it, Welford's recurrence
    # in each lane of the tile, then all lanes about their common mean.
    pivot = tl.load(y + first * stride + c, mask=in_c, other=0).to(ACC)
    count = tl.zeros((BLOCK_R,), ACC)
    mean = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    square = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for step in range(0, tl.cdiv(share, BLOCK_R)):
        within = step * BLOCK_R + lane
        in_r = (within < share) & (start + within < pixels)
        x = (
            _load_rows(y, first + within, stride, c, in_r[:, None] & in_c[None, :], ACC)
            - pivot[None, :]
        )
        count += in_r.to(ACC)
        delta = tl.where(in_r[:, None], x - mean, 0)
        mean += delta * (1 / tl.maximum(count, 1))[:, None]
        square += delta * (x - mean)
    total = tl.sum(count, 0)
    common = tl.sum(mean * count[:, None], 0) / total
    away = mean - common[None, :]
    square = tl.sum(square + count[:, None] * away * away, 0)
    at = begin + part.to(tl.int64) * channels + c
    tl.store(moments + at, pivot.to(tl.float64) + common, mask=in_c)
    tl.store(moments + apart + at, square, mask=in_c)


@triton.jit
def choose_kernel(
    y1: tl.tensor, y2: tl.tensor, gates: tl.tensor, rows: tl.tensor, residual: tl.tensor,
    out: tl.tensor, partial: tl.tensor, images: int, groups: int, pixels: int, channels: int,
    stride1: int, stride2: int, second: int, stride_residual: int, splits: int, share: int,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Normalise, choose, add and rectify `share` pixels of an image; their part of its mean."""
    c, in_c, rest = _columns(channels, BLOCK_C)
    y2 += second
    split = (rest % splits).to(tl.int64)
    n = (rest // splits).to(tl.int64)
    apart = groups * channels
    at = n // (images // groups) * channels + c
    g = _row(gates, n * channels + c, in_c, ACC)
    k1 = (g * _row(rows, 2 * apart + at, in_c, ACC))[None, :]
    k2 = ((1 - g) * _row(rows, 7 * apart + at, in_c, ACC))[None, :]
    constant = (1 - g) * _row(rows, 8 * apart + at, in_c, ACC)
    constant = (constant + g * _row(rows, 3 * apart + at, in_c, ACC))[None, :]
    lane = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for step in range(0, tl.cdiv(share, BLOCK_R)):
        within = step * BLOCK_R + lane
        r = split * share + within
        row = n * pixels + r
        mask = ((within < share) & (r < pixels))[:, None] & in_c[None, :]
        # A branch that is switched off must not send its infinities: 0 * inf is NaN.
        value = constant + tl.where(k1 == 0, 0, k1 * _load_rows(y1, row, stride1, c, mask, ACC))
        value += tl.where(k2 == 0, 0, k2 * _load_rows(y2, row, stride2, c, mask, ACC))
        if RESIDUAL:
            value += _load_rows(residual, row, stride_residual, c, mask, ACC)
        if RELU:
            value = tl.where(value < 0, 0, value)  # keeps NaN, as torch does
        _store_rows(out, row, channels, c, mask, value)
        total += tl.where(mask, value.to(out.dtype.element_ty).to(ACC), 0)
    mean = tl.sum(total, 0) / pixels
    tl.store(partial + (split * images + n) * channels + c, mean, mask=in_c)


@triton.jit
def sums_kernel(
    dout: tl.tensor,
    more: tl.tensor,
    out: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    rows: tl.tensor,
    work: tl.tensor,
    images: int,
    groups: int,
    pixels: int,
    channels: int,
    stride_dout: int,
    stride_out: int,
    stride1: int,
    stride2: int,
    second: int,
    splits: int,
    share: int,
    MORE: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The three sums over `share` pixels of one image, to `work` (splits, 3, images, C).

    `more` is the gradient of the output's mean.
    """
    c, in_c, rest = _columns(channels, BLOCK_C)
    y2 += second
    split = (rest % splits).to(tl.int64)
    n = (rest // splits).to(tl.int64)
    at = n // (images // groups) * channels + c
    mean1 = _row(rows, at, in_c, ACC)[None, :]
    mean2 = _row(rows, 5 * groups * channels + at, in_c, ACC)[None, :]
    if MORE:
        also = (_row(more, n * channels + c, in_c, ACC) / pixels)[None, :]
    lane = tl.arange(0, BLOCK_R)
    s0 = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    s1 = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    s2 = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for step in range(0, tl.cdiv(share, BLOCK_R)):
        within = step * BLOCK_R + lane
        r = split * share + within
        row = n * pixels + r
        mask = ((within < share) & (r < pixels))[:, None] & in_c[None, :]
        dz = _load_rows(dout, row, stride_dout, c, mask, ACC)
        if MORE:
            dz = tl.where(mask, dz + also, 0)
        if RELU:
            dz = tl.where(_load_rows(out, row, stride_out, c, mask, ACC) > 0, dz, 0)
        s0 += dz
        s1 += dz * (_load_rows(y1, row, stride1, c, mask, ACC) - mean1)
        s2 += dz * (_load_rows(y2, row, stride2, c, mask, ACC) - mean2)
    at = work + (split * 3 * images + n) * channels + c
    apart = tl.cast(images, tl.int64) * channels
    tl.store(at, tl.sum(s0, 0), mask=in_c)
    tl.store(at + apart, tl.sum(s1, 0), mask=in_c)
    tl.store(at + 2 * apart, tl.sum(s2, 0), mask=in_c)


@triton.jit
def _of_branch(
    own: tl.tensor, rows: tl.tensor, qr: tl.tensor, at: tl.tensor, in_c: tl.tensor, apart: int,
    KIND: tl.constexpr, ACC: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """p, q, r and the mean of a branch, for an image that weighs `own` in it."""
    p = own * _row(rows, 2 * apart + at, in_c, ACC)
    mean = _row(rows, at, in_c, ACC)
    q = tl.zeros_like(p)
    r = tl.zeros_like(p)
    if KIND != FIXED:
        q = _row(qr, at, in_c, ACC)
        r = _row(qr, apart + at, in_c, ACC)
        if KIND == CHOSEN:
            q = own * q
            r = own * r
    return p[None, :], q[None, :], r[None, :], mean[None, :]


@triton.jit
def spread_kernel(
    dout: tl.tensor, more: tl.tensor, out: tl.tensor, y1: tl.tensor, y2: tl.tensor,
    gates: tl.tensor, rows: tl.tensor, work: tl.tensor, dy1: tl.tensor, dy2: tl.tensor,
    dz_out: tl.tensor, images: int, groups: int, pixels: int, channels: int, stride_dout: int,
    stride_out: int, stride1: int, stride2: int, second: int, stride_dy: int, second_dy: int,
    at_qr: tl.int64, KIND1: tl.constexpr, KIND2: tl.constexpr, MORE: tl.constexpr,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """The gradients of both convolutions' outputs, and the residual's; `more` is the mean's.

    qr begins at `at_qr` in `work`.
    """
    c, in_c, rest = _columns(channels, BLOCK_C)
    y2 += second
    dy2 += second_dy
    qr = work + at_qr
    blocks = tl.cdiv(pixels, BLOCK_R)
    r = (rest % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = (rest // blocks).to(tl.int64)
    row = n * pixels + r
    mask = (r < pixels)[:, None] & in_c[None, :]
    dz = _load_rows(dout, row, stride_dout, c, mask, ACC)
    if MORE:
        dz += (_row(more, n * channels + c, in_c, ACC) / pixels)[None, :]
    if RELU:
        dz = tl.where(_load_rows(out, row, stride_out, c, mask, ACC) > 0, dz, 0)
    if RESIDUAL:
        _store_rows(dz_out, row, channels, c, mask, dz)
    g = _row(gates, n * channels + c, in_c, ACC)
    apart = groups * channels
    at = n // (images // groups) * channels + c
    p, q, constant, mean = _of_branch(g, rows, qr, at, in_c, apart, KIND1, ACC)
    x = _load_rows(y1, row, stride1, c, mask, ACC)
    _store_rows(dy1, row, stride_dy, c, mask, p * dz + q * (x - mean) + constant)
    p, q, constant, mean = _of_branch(
        1 - g, rows + 5 * apart, qr + 2 * apart, at, in_c, apart, KIND2, ACC
    )
    x = _load_rows(y2, row, stride2, c, mask, ACC)
    _store_rows(dy2, row, stride_dy, c, mask, p * dz + q * (x - mean) + constant)
