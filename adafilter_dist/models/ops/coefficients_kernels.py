"""Triton kernels between the passes of a gated layer; `layer_operators` launches them.

Forward: each branch's statistics from moments of shares of images. Backward: the small gradients
from sums over pixels. Images come in groups, the micro-batches of a forward. `rows` holds what is
known of a group and channel, (10, groups, C): mean, 1 / standard deviation, scale, shift and weight
of the statistics (in images) of the tuned branch, then of the frozen one. Names are those of
`passes_kernels`. What the kernels must equal: `passes_reference`, group by group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adafilter_dist.models.ops.passes_kernels import (
    ALL,
    CHOSEN,
    FIXED,
    _columns,
    _load_rows,
    _row,
)


@triton.jit
def _weights(
    gates: tl.tensor, image: tl.tensor, channels: int, c: tl.tensor, mask: tl.tensor,
    TUNED: tl.constexpr, KIND: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """How much images weigh in the statistics: their gates, what is left of one, or one."""
    if KIND == CHOSEN:
        g = _load_rows(gates, image, channels, c, mask, tl.float64)
        weight = g if TUNED else tl.where(mask, 1 - g, 0)
    else:
        weight = tl.where(mask, 1, 0).to(tl.float64)
    return weight


@triton.jit
def _branch(
    c: tl.tensor, in_c: tl.tensor, block: tl.tensor, means: tl.tensor, squares: tl.tensor,
    width: int, gates: tl.tensor, weight: tl.tensor, bias: tl.tensor, running_mean: tl.tensor,
    running_var: tl.tensor, sums: tl.tensor, rows: tl.tensor, groups: int, images: int,
    pixels: tl.int64, channels: int, splits: int, share: int, PRIOR: tl.constexpr,
    EPS: tl.constexpr, TUNED: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """The rows of one branch, and its sums for the running statistics; `images` in a group."""
    lane = tl.arange(0, BLOCK_R)
    parts = images * splits
    apart = groups * channels
    # Without running statistics there is nothing but the images'.
    old_mean = tl.zeros((BLOCK_C,), tl.float64)
    old_var = tl.zeros((BLOCK_C,), tl.float64)
    if KIND != ALL:
        old_mean = _row(running_mean, c, in_c, tl.float64)
        old_var = _row(running_var, c, in_c, tl.float64)
    gamma = _row(weight, c, in_c, ACC)
    beta = _row(bias, c, in_c, ACC)
    sum_mean = tl.zeros((BLOCK_C,), ACC)
    sum_var = tl.zeros((BLOCK_C,), ACC)
    sum_share = tl.zeros((BLOCK_C,), ACC)
    if KIND != FIXED:
        sum_mean = _row(sums, c, in_c, ACC)
        sum_var = _row(sums, channels + c, in_c, ACC)
    if KIND == CHOSEN:
        sum_share = _row(sums, 2 * channels + c, in_c, ACC)
    for group in range(0, groups):
        mean = old_mean
        var = old_var
        total = tl.zeros((BLOCK_C,), tl.float64)
        if KIND != FIXED:
            # The images' mean, weighing each part by its pixels too.
            middle = tl.zeros((BLOCK_C,), tl.float64)
            for step in range(0, tl.cdiv(parts, BLOCK_R)):
                part = (step * BLOCK_R + lane).to(tl.int64)
                mask = (part < parts)[:, None] & in_c[None, :]
                image = group * images + part // splits
                chose = _weights(gates, image, channels, c, mask, TUNED, KIND)
                # An image's own weight once, so that the sum over all is exactly their number.
                total += tl.sum(tl.where((part % splits == 0)[:, None], chose, 0), 0)
                size = tl.minimum(pixels - part % splits * share, share).to(tl.float64) / pixels
                of = _load_rows(means, group * parts + part, width, c, mask, tl.float64)
                middle += tl.sum(chose * size[:, None] * of, 0)
            safe = tl.where(total > 0, total, 1)
            middle = middle / safe
            own = tl.zeros((BLOCK_C,), tl.float64)
            for step in range(0, tl.cdiv(parts, BLOCK_R)):
                part = (step * BLOCK_R + lane).to(tl.int64)
                mask = (part < parts)[:, None] & in_c[None, :]
                image = group * images + part // splits
                chose = _weights(gates, image, channels, c, mask, TUNED, KIND)
                size = tl.minimum(pixels - part % splits * share, share).to(tl.float64) / pixels
                at = group * parts + part
                away = _load_rows(means, at, width, c, mask, tl.float64) - middle[None, :]
                square = _load_rows(squares, at, width, c, mask, tl.float64) / pixels
                own += tl.sum(chose * (square + size[:, None] * away * away), 0)
            own = own / safe
            # As a step from the images' own: exactly theirs if all chose, the running ones if none.
            part_of_all = total / images
            added = tl.maximum(PRIOR * (1 - part_of_all), 0)
            taken = added / (total + added)
            off = old_mean - middle
            mean = middle + taken * off
            var = own + taken * (old_var - own) + taken * (1 - taken) * off * off
            var = tl.maximum(var, 0)
            # A single value has no variance: then the running one stays, or it counts as it is.
            count = total * pixels
            unbiased = own * (count / tl.maximum(count - 1, 1))
            if KIND == CHOSEN:
                unbiased = tl.where(count > 1, unbiased, old_var)
                sum_share += part_of_all.to(ACC)
            sum_mean += (part_of_all * middle).to(ACC)
            sum_var += (part_of_all * unbiased).to(ACC)
            total = total + added
        rstd = 1 / tl.sqrt(var.to(ACC) + EPS)
        scale = gamma * rstd
        at = group * channels + c
        tl.store(rows + at, mean.to(ACC), mask=in_c)
        tl.store(rows + apart + at, rstd, mask=in_c)
        tl.store(rows + 2 * apart + at, scale, mask=in_c)
        tl.store(rows + 3 * apart + at, beta - mean.to(ACC) * scale, mask=in_c)
        tl.store(rows + 4 * apart + at, total.to(ACC), mask=in_c)
    if KIND != FIXED:
        tl.store(sums + c, sum_mean, mask=in_c)
        tl.store(sums + channels + c, sum_var, mask=in_c)
        last = 2 * channels
        if KIND == CHOSEN:
            tl.store(sums + last + c, sum_share, mask=in_c)
            last += channels
        if block == 0:
            tl.store(sums + last, tl.load(sums + last) + groups)


@triton.jit
def statistics_kernel(
    moments: tl.tensor, gates: tl.tensor,
    weight1: tl.tensor, bias1: tl.tensor, running_mean1: tl.tensor, running_var1: tl.tensor,
    sums1: tl.tensor,
    weight2: tl.tensor, bias2: tl.tensor, running_mean2: tl.tensor, running_var2: tl.tensor,
    sums2: tl.tensor,
    rows: tl.tensor, width: int, apart: tl.int64, second: tl.int64, groups: int, images: int,
    pixels: tl.int64, channels: int, splits: int, share: int, PRIOR: tl.constexpr,
    EPS1: tl.constexpr, EPS2: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Both branches' rows from the moments of shares of images; half of the programs for each.

    `moments` are means, `apart` from them squares; those of the frozen branch begin at `second`.
    """
    c, in_c, branch = _columns(channels, BLOCK_C)
    block = tl.program_id(0) % tl.cdiv(channels, BLOCK_C)
    if branch == 0:
        _branch(
            c, in_c, block, moments, moments + apart, width, gates, weight1, bias1, running_mean1,
            running_var1, sums1, rows, groups, images, pixels, channels, splits, share,
            PRIOR, EPS1, True, KIND1, ACC, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        _branch(
            c, in_c, block, moments + second, moments + second + apart, width, gates, weight2,
            bias2, running_mean2, running_var2, sums2, rows + 5 * groups * channels, groups,
            images, pixels, channels, splits, share, PRIOR, EPS2, False, KIND2, ACC, BLOCK_R,
            BLOCK_C,
        )  # fmt: skip


@triton.jit
def gradients_kernel(
    gates: tl.tensor, work: tl.tensor, rows: tl.tensor, weight1: tl.tensor, bias1: tl.tensor,
    weight2: tl.tensor, bias2: tl.tensor, dgates: tl.tensor, dweight1: tl.tensor,
    dbias1: tl.tensor, dweight2: tl.tensor, dbias2: tl.tensor, groups: int, images: int,
    pixels: int, channels: int, splits: int, at_qr: tl.int64, KIND1: tl.constexpr,
    KIND2: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """All small gradients from sums (splits, 3, N, C), with which `work` begins.

    At `at_qr` in it qr (4, groups, C) is written, of dy = p dz + q (y - mean) + r. `images` in a
    group. q and r are for an image that weighs one in the statistics.
    """
    qr = work + at_qr
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    w1 = _row(weight1, c, in_c, ACC)[None, :]
    b1 = _row(bias1, c, in_c, ACC)[None, :]
    w2 = _row(weight2, c, in_c, ACC)[None, :]
    b2 = _row(bias2, c, in_c, ACC)[None, :]
    all_w1 = tl.zeros((BLOCK_C,), ACC)
    all_b1 = tl.zeros((BLOCK_C,), ACC)
    all_w2 = tl.zeros((BLOCK_C,), ACC)
    all_b2 = tl.zeros((BLOCK_C,), ACC)
    apart = groups * images * channels
    of_group = groups * channels
    for group in range(0, groups):
        to = group * channels + c
        rstd1 = _row(rows, of_group + to, in_c, ACC)
        rstd2 = _row(rows, 6 * of_group + to, in_c, ACC)
        k1 = rstd1[None, :]
        k2 = rstd2[None, :]
        dw1 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        db1 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        dw2 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        db2 = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        for step in range(0, tl.cdiv(images, BLOCK_N)):
            n = step * BLOCK_N + tl.arange(0, BLOCK_N)
            mask = (n < images)[:, None] & in_c[None, :]
            at = (group * images + n)[:, None] * channels + c[None, :]
            g = tl.load(gates + at, mask=mask, other=0).to(ACC)
            s0 = tl.load(work + at, mask=mask, other=0).to(ACC)
            s1 = tl.load(work + apart + at, mask=mask, other=0).to(ACC)
            s2 = tl.load(work + 2 * apart + at, mask=mask, other=0).to(ACC)
            for split in range(1, splits):
                of_split = work + tl.cast(3 * split, tl.int64) * apart + at
                s0 += tl.load(of_split, mask=mask, other=0).to(ACC)
                s1 += tl.load(of_split + apart, mask=mask, other=0).to(ACC)
                s2 += tl.load(of_split + 2 * apart, mask=mask, other=0).to(ACC)
            # w1 k1 s1 - w2 k2 s2 by differences: exactly zero where both branches are the same,
            # also where the compiler fuses a product with its sum.
            between = (s1 - s2) * k1 + s2 * (k1 - k2)
            s1 = s1 * k1
            s2 = s2 * k2  # of the gradient times what was normalised
            value = w1 * between + (w1 - w2) * s2 + (b1 - b2) * s0
            tl.store(dgates + at, value, mask=mask)
            dw1 += g * s1
            db1 += g * s0
            dw2 += (1 - g) * s2
            db2 += (1 - g) * s0
        sum_w1 = tl.sum(dw1, 0)
        sum_b1 = tl.sum(db1, 0)
        sum_w2 = tl.sum(dw2, 0)
        sum_b2 = tl.sum(db2, 0)
        all_w1 += sum_w1
        all_b1 += sum_b1
        all_w2 += sum_w2
        all_b2 += sum_b2
        if KIND1 != FIXED:
            total = tl.where(in_c, _row(rows, 4 * of_group + to, in_c, ACC), 1)
            each = _row(rows, 2 * of_group + to, in_c, ACC) / (total * pixels)
            tl.store(qr + to, -each * rstd1 * sum_w1, mask=in_c)
            tl.store(qr + of_group + to, -each * sum_b1, mask=in_c)
        if KIND2 != FIXED:
            total = tl.where(in_c, _row(rows, 9 * of_group + to, in_c, ACC), 1)
            each = _row(rows, 7 * of_group + to, in_c, ACC) / (total * pixels)
            tl.store(qr + 2 * of_group + to, -each * rstd2 * sum_w2, mask=in_c)
            tl.store(qr + 3 * of_group + to, -each * sum_b2, mask=in_c)
    tl.store(dweight1 + c, all_w1, mask=in_c)
    tl.store(dbias1 + c, all_b1, mask=in_c)
    tl.store(dweight2 + c, all_w2, mask=in_c)
    tl.store(dbias2 + c, all_b2, mask=in_c)
