"""Triton kernel of a convolution whose filters every image chooses for itself.

An implicit matrix product for each image: out (pixels, filters) = patches (pixels, K) times the
chosen filters (K, filters), K = KH * KW * Cin. Names: m output pixels, f filters, k along K, n
images, c input channels. `selected_triton` launches it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def selected_conv_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    bits: tl.tensor,
    pairs: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    mean: tl.tensor,
    height: int,
    width: int,
    channels: int,
    filters: int,
    out_width: int,
    out_pixels: int,
    stride_x: int,
    stride_residual: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FLAT: tl.constexpr,
    WHOLE_C: tl.constexpr,
    PAIRS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    MEAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    # Neighbouring programs share a tile of x; the filters of a layer stay in the cache anyway.
    pid = tl.program_id(0)
    filter_blocks = tl.cdiv(filters, BLOCK_F)
    pixel_blocks = tl.cdiv(out_pixels, BLOCK_M)
    f = (pid % filter_blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    rest = pid // filter_blocks
    m = (rest % pixel_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (rest // pixel_blocks).to(tl.int64)
    in_f = f < filters
    in_m = m < out_pixels

    # The two banks of filters lie behind each other: a bit is a row number. Where some are shared,
    # a table has the rows of both.
    bit = tl.load(bits + n * filters + f, mask=in_f, other=0).to(tl.int64)
    row = bit * filters + f
    if PAIRS:
        row = tl.load(pairs + row, mask=in_f, other=0)
    weight_rows = weight + row * (KH * KW * channels)
    image = x + n * height * width * stride_x
    top = (m // out_width) * stride_h - pad_h
    left = (m % out_width) * stride_w - pad_w
    k = tl.arange(0, BLOCK_K)

    accumulator = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    if FLAT:
        # Few input channels (a stem): k runs over taps and channels together.
        depth = KH * KW * channels
        for start in range(0, depth, BLOCK_K):
            at = start + k
            in_k = at < depth
            tap = at // channels
            h = top[:, None] + ((tap // KW) * dilation_h)[None, :]
            w = left[:, None] + ((tap % KW) * dilation_w)[None, :]
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
            patch = tl.load(
                image + (h * width + w) * stride_x + (at % channels)[None, :],
                mask=inside & in_m[:, None] & in_k[None, :],
                other=0,
            )
            chosen = tl.load(
                weight_rows[None, :] + at[:, None], mask=in_k[:, None] & in_f[None, :], other=0
            )
            accumulator = tl.dot(patch, chosen, accumulator, input_precision=PRECISION)
    else:
        channel_blocks = tl.cdiv(channels, BLOCK_K)
        for step in range(0, KH * KW * channel_blocks):
            tap = step // channel_blocks
            c = (step % channel_blocks) * BLOCK_K + k
            h = top + (tap // KW) * dilation_h
            w = left + (tap % KW) * dilation_w
            mask_x = (in_m & (h >= 0) & (h < height) & (w >= 0) & (w < width))[:, None]
            mask_w = in_f[None, :]
            if not WHOLE_C:
                mask_x = mask_x & (c < channels)[None, :]
                mask_w = mask_w & (c < channels)[:, None]
            patch = tl.load(
                image + ((h * width + w) * stride_x)[:, None] + c[None, :], mask=mask_x, other=0
            )
            chosen = tl.load(
                weight_rows[None, :] + (tap * channels + c)[:, None], mask=mask_w, other=0
            )
            accumulator = tl.dot(patch, chosen, accumulator, input_precision=PRECISION)

    value = accumulator + tl.load(bias + row, mask=in_f, other=0).to(tl.float32)[None, :]
    mask = in_m[:, None] & in_f[None, :]
    rows = (n * out_pixels + m)[:, None]
    if RESIDUAL:
        at_residual = residual + rows * stride_residual + f[None, :]
        value += tl.load(at_residual, mask=mask, other=0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0, value)  # keeps NaN, as torch does
    stored = value.to(out.dtype.element_ty)
    tl.store(out + rows * filters + f[None, :], stored, mask=mask)
    if MEAN:
        # Of what the next layer reads: this tile's share of the mean over an image's pixels.
        total = tl.sum(tl.where(mask, stored.to(tl.float32), 0.0), 0)
        tl.store(mean + rest.to(tl.int64) * filters + f, total / out_pixels, mask=in_f)
