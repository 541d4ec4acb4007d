"""Triton kernels of the four passes; `passes_triton` launches them, `passes_reference` says what.

A tile is BLOCK_R rows (pixels) by BLOCK_C columns (channels). Names: r pixels, c channels, n
images; stride, from a pixel to the next. Row numbers are int64, as an offset may pass 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def moments_kernel(
    y: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    pixels: tl.int64,
    channels: int,
    stride: int,
    splits: int,
    share: int,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Mean and sum of squared distances from it, over `share` pixels of one image.

    All images may stand as one, whose pixels are all rows.
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
    at = part.to(tl.int64) * channels + c
    tl.store(means + at, pivot.to(tl.float64) + common, mask=in_c)
    tl.store(squares + at, square, mask=in_c)


@triton.jit
def combine_kernel(
    means: tl.tensor,
    squares: tl.tensor,
    mean: tl.tensor,
    var: tl.tensor,
    rows: tl.int64,
    channels: int,
    share: int,
    splits: int,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Mean and variance of all rows from those of the shares, by Chan's formula in float64."""
    c, in_c, _ = _columns(channels, BLOCK_C)
    lane = tl.arange(0, BLOCK_R)
    common = tl.zeros((BLOCK_C,), tl.float64)
    for step in range(0, tl.cdiv(splits, BLOCK_R)):
        split = (step * BLOCK_R + lane).to(tl.int64)
        weight = tl.minimum(tl.maximum(rows - split * share, 0), share).to(tl.float64) / rows
        mask = (split < splits)[:, None] & in_c[None, :]
        common += tl.sum(
            weight[:, None] * _load_rows(means, split, channels, c, mask, tl.float64), 0
        )
    spread = tl.zeros((BLOCK_C,), tl.float64)
    for step in range(0, tl.cdiv(splits, BLOCK_R)):
        split = (step * BLOCK_R + lane).to(tl.int64)
        weight = tl.minimum(tl.maximum(rows - split * share, 0), share).to(tl.float64) / rows
        mask = (split < splits)[:, None] & in_c[None, :]
        away = _load_rows(means, split, channels, c, mask, tl.float64) - common[None, :]
        square = _load_rows(squares, split, channels, c, mask, tl.float64) / rows
        spread += tl.sum(square + weight[:, None] * away * away, 0)
    tl.store(mean + c, common, mask=in_c)
    tl.store(var + c, spread, mask=in_c)


@triton.jit
def _weights(
    gates: tl.tensor,
    part: tl.tensor,
    splits: int,
    channels: int,
    c: tl.tensor,
    mask: tl.tensor,
    TUNED: tl.constexpr,
) -> tl.tensor:
    """How much the images of these parts weigh: their gates, or what is left of one."""
    g = _load_rows(gates, part // splits, channels, c, mask, tl.float64)
    return g if TUNED else tl.where(mask, 1 - g, 0)


@triton.jit
def choosers_kernel(
    means: tl.tensor,
    squares: tl.tensor,
    gates: tl.tensor,
    running_mean: tl.tensor,
    running_var: tl.tensor,
    to: tl.tensor,
    images: int,
    pixels: tl.int64,
    channels: int,
    splits: int,
    share: int,
    prior: float,
    TUNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Of the images that chose each filter, and the running statistics, from shares of images.

    Six rows of channels: mean, variance and weight of all that; the choosers' own mean and unbiased
    variance times their share, and that share.
    """
    c, in_c, _ = _columns(channels, BLOCK_C)
    lane = tl.arange(0, BLOCK_R)
    parts = images * splits
    # The choosers' mean, weighing each part by its pixels too.
    total = tl.zeros((BLOCK_C,), tl.float64)
    middle = tl.zeros((BLOCK_C,), tl.float64)
    for step in range(0, tl.cdiv(parts, BLOCK_R)):
        part = (step * BLOCK_R + lane).to(tl.int64)
        mask = (part < parts)[:, None] & in_c[None, :]
        weight = _weights(gates, part, splits, channels, c, mask, TUNED)
        # An image's own weight once, so that the sum over all is exactly their number.
        total += tl.sum(tl.where((part % splits == 0)[:, None], weight, 0), 0)
        size = tl.minimum(pixels - part % splits * share, share).to(tl.float64) / pixels
        mean = _load_rows(means, part, channels, c, mask, tl.float64)
        middle += tl.sum(weight * size[:, None] * mean, 0)
    safe = tl.where(total > 0, total, 1)
    middle = middle / safe
    own = tl.zeros((BLOCK_C,), tl.float64)
    for step in range(0, tl.cdiv(parts, BLOCK_R)):
        part = (step * BLOCK_R + lane).to(tl.int64)
        mask = (part < parts)[:, None] & in_c[None, :]
        weight = _weights(gates, part, splits, channels, c, mask, TUNED)
        size = tl.minimum(pixels - part % splits * share, share).to(tl.float64) / pixels
        away = _load_rows(means, part, channels, c, mask, tl.float64) - middle[None, :]
        square = _load_rows(squares, part, channels, c, mask, tl.float64) / pixels
        own += tl.sum(weight * (square + size[:, None] * away * away), 0)
    own = own / safe
    # As a step from the choosers' own: exactly theirs if all chose, the running ones if none.
    chose = total / images
    added = tl.maximum(prior * (1 - chose), 0)
    taken = added / (total + added)
    old_mean = tl.load(running_mean + c, mask=in_c, other=0).to(tl.float64)
    old_var = tl.load(running_var + c, mask=in_c, other=0).to(tl.float64)
    off = old_mean - middle
    var = own + taken * (old_var - own) + taken * (1 - taken) * off * off
    # A single value has no variance: then the running one stays.
    count = total * pixels
    unbiased = tl.where(count > 1, own * (count / tl.maximum(count - 1, 1)), old_var)
    tl.store(to + c, middle + taken * off, mask=in_c)
    tl.store(to + channels + c, tl.maximum(var, 0), mask=in_c)
    tl.store(to + 2 * channels + c, total + added, mask=in_c)
    tl.store(to + 3 * channels + c, chose * middle, mask=in_c)
    tl.store(to + 4 * channels + c, chose * unbiased, mask=in_c)
    tl.store(to + 5 * channels + c, chose, mask=in_c)


@triton.jit
def blend_kernel(
    y1: tl.tensor,
    y2: tl.tensor,
    a1: tl.tensor,
    a2: tl.tensor,
    b: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    images: int,
    pixels: int,
    channels: int,
    stride1: int,
    stride2: int,
    stride_residual: int,
    splits: int,
    share: int,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Over `share` pixels of one image, and the sum of what was stored there."""
    c, in_c, rest = _columns(channels, BLOCK_C)
    split = (rest % splits).to(tl.int64)
    n = (rest // splits).to(tl.int64)
    nc = n * channels + c
    k1 = tl.load(a1 + nc, mask=in_c, other=0).to(ACC)[None, :]
    k2 = tl.load(a2 + nc, mask=in_c, other=0).to(ACC)[None, :]
    constant = tl.load(b + nc, mask=in_c, other=0).to(ACC)[None, :]
    lane = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for step in range(0, tl.cdiv(share, BLOCK_R)):
        within = step * BLOCK_R + lane
        r = split * share + within
        rows = n * pixels + r
        mask = ((within < share) & (r < pixels))[:, None] & in_c[None, :]
        # A branch that is switched off must not send its infinities: 0 * inf is NaN.
        value = constant + tl.where(k1 == 0, 0, k1 * _load_rows(y1, rows, stride1, c, mask, ACC))
        value += tl.where(k2 == 0, 0, k2 * _load_rows(y2, rows, stride2, c, mask, ACC))
        if RESIDUAL:
            value += _load_rows(residual, rows, stride_residual, c, mask, ACC)
        if RELU:
            value = tl.where(value < 0, 0, value)  # keeps NaN, as torch does
        _store_rows(out, rows, channels, c, mask, value)
        total += tl.where(mask, value.to(out.dtype.element_ty).to(ACC), 0)
    tl.store(partial + (split * images + n) * channels + c, tl.sum(total, 0), mask=in_c)


@triton.jit
def sums_kernel(
    dout: tl.tensor,
    more: tl.tensor,
    out: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    m1: tl.tensor,
    m2: tl.tensor,
    partial: tl.tensor,
    images: int,
    group: int,
    pixels: int,
    channels: int,
    stride_dout: int,
    stride_out: int,
    stride1: int,
    stride2: int,
    splits: int,
    share: int,
    MEAN: tl.constexpr,
    MORE: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The three sums over `share` pixels of one image.

    Each `group` images have their own m1 and m2. With MEAN `more` is the gradient of the mean.
    """
    c, in_c, rest = _columns(channels, BLOCK_C)
    split = (rest % splits).to(tl.int64)
    n = (rest // splits).to(tl.int64)
    at = n // group * channels + c
    mean1 = tl.load(m1 + at, mask=in_c, other=0).to(ACC)[None, :]
    mean2 = tl.load(m2 + at, mask=in_c, other=0).to(ACC)[None, :]
    if MORE:
        also = tl.load(more + n * channels + c, mask=in_c, other=0).to(ACC)[None, :]
        if MEAN:
            also = also / pixels
    lane = tl.arange(0, BLOCK_R)
    s0 = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    s1 = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    s2 = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for step in range(0, tl.cdiv(share, BLOCK_R)):
        within = step * BLOCK_R + lane
        r = split * share + within
        rows = n * pixels + r
        mask = ((within < share) & (r < pixels))[:, None] & in_c[None, :]
        dz = _load_rows(dout, rows, stride_dout, c, mask, ACC)
        if MORE:
            dz = tl.where(mask, dz + also, 0)
        if RELU:
            dz = tl.where(_load_rows(out, rows, stride_out, c, mask, ACC) > 0, dz, 0)
        s0 += dz
        s1 += dz * (_load_rows(y1, rows, stride1, c, mask, ACC) - mean1)
        s2 += dz * (_load_rows(y2, rows, stride2, c, mask, ACC) - mean2)
    at = partial + (split * 3 * images + n) * channels + c
    apart = tl.cast(images, tl.int64) * channels
    tl.store(at, tl.sum(s0, 0), mask=in_c)
    tl.store(at + apart, tl.sum(s1, 0), mask=in_c)
    tl.store(at + 2 * apart, tl.sum(s2, 0), mask=in_c)


@triton.jit
def spread_kernel(
    dout: tl.tensor,
    more: tl.tensor,
    out: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    m1: tl.tensor,
    m2: tl.tensor,
    p1: tl.tensor,
    q1: tl.tensor,
    r1: tl.tensor,
    p2: tl.tensor,
    q2: tl.tensor,
    r2: tl.tensor,
    dy1: tl.tensor,
    dy2: tl.tensor,
    dz_out: tl.tensor,
    pixels: int,
    channels: int,
    stride_dout: int,
    stride_out: int,
    stride1: int,
    stride2: int,
    stride_dy: int,
    MORE: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    c, in_c, rest = _columns(channels, BLOCK_C)
    blocks = tl.cdiv(pixels, BLOCK_R)
    r = (rest % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = (rest // blocks).to(tl.int64)
    rows = n * pixels + r
    mask = (r < pixels)[:, None] & in_c[None, :]
    nc = n * channels + c
    dz = _load_rows(dout, rows, stride_dout, c, mask, ACC)
    if MORE:
        dz += tl.load(more + nc, mask=in_c, other=0).to(ACC)[None, :]
    if RELU:
        dz = tl.where(_load_rows(out, rows, stride_out, c, mask, ACC) > 0, dz, 0)
    if RESIDUAL:
        _store_rows(dz_out, rows, channels, c, mask, dz)
    p = tl.load(p1 + nc, mask=in_c, other=0).to(ACC)[None, :]
    q = tl.load(q1 + nc, mask=in_c, other=0).to(ACC)[None, :]
    constant = tl.load(r1 + nc, mask=in_c, other=0).to(ACC)[None, :]
    mean = tl.load(m1 + c, mask=in_c, other=0).to(ACC)[None, :]
    x = _load_rows(y1, rows, stride1, c, mask, ACC)
    _store_rows(dy1, rows, stride_dy, c, mask, p * dz + q * (x - mean) + constant)
    p = tl.load(p2 + nc, mask=in_c, other=0).to(ACC)[None, :]
    q = tl.load(q2 + nc, mask=in_c, other=0).to(ACC)[None, :]
    constant = tl.load(r2 + nc, mask=in_c, other=0).to(ACC)[None, :]
    mean = tl.load(m2 + c, mask=in_c, other=0).to(ACC)[None, :]
    x = _load_rows(y2, rows, stride2, c, mask, ACC)
    _store_rows(dy2, rows, stride_dy, c, mask, p * dz + q * (x - mean) + constant)
