"""Triton kernels of what stands between the passes; `coefficients_triton` launches them.

Arithmetic on (C,) and (N, C): a program takes BLOCK_C channels and walks through the images,
BLOCK_N at a time. What each must equal: `passes_reference`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(tensor: tl.tensor, c: tl.tensor, in_c: tl.tensor, ACC: tl.constexpr) -> tl.tensor:
    """Of (C,), as it multiplies (N, C)."""
    return tl.load(tensor + c, mask=in_c, other=0).to(ACC)[None, :]


@triton.jit
def coefficients_kernel(
    gates: tl.tensor,
    weight1: tl.tensor,
    bias1: tl.tensor,
    mean1: tl.tensor,
    var1: tl.tensor,
    weight2: tl.tensor,
    bias2: tl.tensor,
    mean2: tl.tensor,
    var2: tl.tensor,
    abc: tl.tensor,
    rstd: tl.tensor,
    images: int,
    channels: int,
    EPS1: tl.constexpr,
    EPS2: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """abc (3, N, C): a1, a2, b of the blend; rstd (2, C)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    rstd1 = 1 / tl.sqrt(_row(var1, c, in_c, ACC) + EPS1)
    rstd2 = 1 / tl.sqrt(_row(var2, c, in_c, ACC) + EPS2)
    tl.store(rstd + c[None, :], rstd1, mask=in_c[None, :])
    tl.store(rstd + channels + c[None, :], rstd2, mask=in_c[None, :])
    scale1 = _row(weight1, c, in_c, ACC) * rstd1
    scale2 = _row(weight2, c, in_c, ACC) * rstd2
    shift1 = _row(bias1, c, in_c, ACC) - _row(mean1, c, in_c, ACC) * scale1
    shift2 = _row(bias2, c, in_c, ACC) - _row(mean2, c, in_c, ACC) * scale2
    apart = images * channels
    for step in range(0, tl.cdiv(images, BLOCK_N)):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < images)[:, None] & in_c[None, :]
        at = n[:, None] * channels + c[None, :]
        g = tl.load(gates + at, mask=mask, other=0).to(ACC)
        tl.store(abc + at, g * scale1, mask=mask)
        tl.store(abc + apart + at, (1 - g) * scale2, mask=mask)
        tl.store(abc + 2 * apart + at, (1 - g) * shift2 + g * shift1, mask=mask)


@triton.jit
def gradients_kernel(
    gates: tl.tensor,
    sums0: tl.tensor,
    sums1: tl.tensor,
    sums2: tl.tensor,
    weight1: tl.tensor,
    bias1: tl.tensor,
    rstd1: tl.tensor,
    weight2: tl.tensor,
    bias2: tl.tensor,
    rstd2: tl.tensor,
    total1: tl.tensor,
    total2: tl.tensor,
    by_image: tl.tensor,
    by_channel: tl.tensor,
    images: int,
    channels: int,
    pixels: int,
    BATCH1: tl.constexpr,
    BATCH2: tl.constexpr,
    TOTAL1: tl.constexpr,
    TOTAL2: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """by_image (7, N, C): dgates p1 q1 r1 p2 q2 r2; by_channel (4, C): dw1 db1 dw2 db2."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    w1, b1 = _row(weight1, c, in_c, ACC), _row(bias1, c, in_c, ACC)
    w2, b2 = _row(weight2, c, in_c, ACC), _row(bias2, c, in_c, ACC)
    k1, k2 = _row(rstd1, c, in_c, ACC), _row(rstd2, c, in_c, ACC)
    dw1 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    db1 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    dw2 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    db2 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    apart = images * channels
    for step in range(0, tl.cdiv(images, BLOCK_N)):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < images)[:, None] & in_c[None, :]
        at = n[:, None] * channels + c[None, :]
        g = tl.load(gates + at, mask=mask, other=0).to(ACC)
        s0 = tl.load(sums0 + at, mask=mask, other=0).to(ACC)
        s1 = tl.load(sums1 + at, mask=mask, other=0).to(ACC)
        s2 = tl.load(sums2 + at, mask=mask, other=0).to(ACC)
        # w1 k1 s1 - w2 k2 s2 by differences: exactly zero where both branches are the same, also
        # where the compiler fuses a product with its sum.
        between = (s1 - s2) * k1 + s2 * (k1 - k2)
        s1, s2 = s1 * k1, s2 * k2  # of the gradient times what was normalised
        dgates = w1 * between + (w1 - w2) * s2 + (b1 - b2) * s0
        tl.store(by_image + at, dgates, mask=mask)
        tl.store(by_image + apart + at, g * w1 * k1, mask=mask)
        tl.store(by_image + 4 * apart + at, (1 - g) * w2 * k2, mask=mask)
        dw1 += g * s1
        db1 += g * s0
        dw2 += (1 - g) * s2
        db2 += (1 - g) * s0
    dweight1, dbias1 = tl.sum(dw1, 0)[None, :], tl.sum(db1, 0)[None, :]
    dweight2, dbias2 = tl.sum(dw2, 0)[None, :], tl.sum(db2, 0)[None, :]
    to, row = by_channel + c[None, :], in_c[None, :]
    tl.store(to, dweight1, mask=row)
    tl.store(to + channels, dbias1, mask=row)
    tl.store(to + 2 * channels, dweight2, mask=row)
    tl.store(to + 3 * channels, dbias2, mask=row)
    # q and r by an image's weight in the statistics, which are those of `total` images' worth.
    of1 = tl.load(total1 + c, mask=in_c, other=1).to(ACC)[None, :] if TOTAL1 else images
    of2 = tl.load(total2 + c, mask=in_c, other=1).to(ACC)[None, :] if TOTAL2 else images
    each1 = w1 * k1 / (of1 * pixels) if BATCH1 else w1 * 0
    each2 = w2 * k2 / (of2 * pixels) if BATCH2 else w2 * 0
    q1, r1 = -each1 * k1 * dweight1, -each1 * dbias1
    q2, r2 = -each2 * k2 * dweight2, -each2 * dbias2
    for step in range(0, tl.cdiv(images, BLOCK_N)):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < images)[:, None] & in_c[None, :]
        at = n[:, None] * channels + c[None, :]
        g = tl.load(gates + at, mask=mask, other=0).to(ACC)
        chose1 = g if TOTAL1 else g * 0 + 1
        chose2 = 1 - g if TOTAL2 else g * 0 + 1
        tl.store(by_image + 2 * apart + at, chose1 * q1, mask=mask)
        tl.store(by_image + 3 * apart + at, chose1 * r1, mask=mask)
        tl.store(by_image + 5 * apart + at, chose2 * q2, mask=mask)
        tl.store(by_image + 6 * apart + at, chose2 * r2, mask=mask)
