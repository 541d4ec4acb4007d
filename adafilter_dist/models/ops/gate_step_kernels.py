"""Triton kernels of a step of the gate; `gate_step_triton` launches them.

A program takes BLOCK_N images through the whole step. It multiplies BLOCK_K columns at a time by a
tile of weights; what one part of the step leaves for the next goes through memory, behind a
barrier. Products are sums, not tensor cores': a gate is decided in its own precision, and an image
takes but half a million multiplications. What each must equal: `gate_step_reference`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(
    x: tl.tensor, n: tl.tensor, in_n: tl.tensor, k: tl.tensor, width: int, ACC: tl.constexpr
) -> tl.tensor:
    """Columns k of rows n of x (N, width)."""
    mask = in_n[:, None] & (k < width)[None, :]
    return tl.load(x + n[:, None] * width + k[None, :], mask=mask, other=0).to(ACC)


@triton.jit
def _store(
    x: tl.tensor, n: tl.tensor, in_n: tl.tensor, k: tl.tensor, width: int, value: tl.tensor
) -> None:
    mask = in_n[:, None] & (k < width)[None, :]
    tl.store(x + n[:, None] * width + k[None, :], value, mask=mask)


@triton.jit
def _tile(weight: tl.tensor, k: tl.tensor, inner: int, k_stride: int, c: tl.tensor,
          outer: int, c_stride: int, ACC: tl.constexpr) -> tl.tensor:  # fmt: skip
    """weight[k, c] by the strides of both; k < inner, c < outer."""
    mask = (k < inner)[:, None] & (c < outer)[None, :]
    at = k[:, None] * k_stride + c[None, :] * c_stride
    return tl.load(weight + at, mask=mask, other=0).to(ACC)


@triton.jit
def _product(
    x: tl.tensor, n: tl.tensor, in_n: tl.tensor, inner: int, weight: tl.tensor, k_stride: int,
    c: tl.tensor, outer: int, c_stride: int, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Rows n of x (N, inner), times weight[k, c]."""
    total = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    for step in range(0, tl.cdiv(inner, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        part = _load(x, n, in_n, k, inner, ACC)
        tile = _tile(weight, k, inner, k_stride, c, outer, c_stride, ACC)
        total += tl.sum(part[:, :, None] * tile[None, :, :], 1)
    return total


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    # Of -|x|, so that no exponential overflows.
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1 / (1 + small), small / (1 + small))


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    small = tl.exp(-2 * tl.abs(x))
    value = (1 - small) / (1 + small)
    return tl.where(x >= 0, value, -value)


@triton.jit
def step_kernel(
    pooled: tl.tensor,
    weight_in: tl.tensor,
    bias_in: tl.tensor,
    weight_out: tl.tensor,
    bias_out: tl.tensor,
    weight_ih: tl.tensor,
    weight_hh: tl.tensor,
    bias_ih: tl.tensor,
    bias_hh: tl.tensor,
    h_before: tl.tensor,
    c_before: tl.tensor,
    shift: tl.tensor,
    noise: tl.tensor,
    gates: tl.tensor,
    logits: tl.tensor,
    h: tl.tensor,
    c: tl.tensor,
    normalised: tl.tensor,
    rstd: tl.tensor,
    projected: tl.tensor,
    activations: tl.tensor,
    tanh_cell: tl.tensor,
    slope: tl.tensor,
    images: int,
    inputs: int,
    hidden: int,
    outputs: int,
    shift_stride: int,
    shift_column: int,
    TEMPERATURE: tl.constexpr,
    EPS: tl.constexpr,
    SIGMOID: tl.constexpr,
    NORMALISE: tl.constexpr,
    STATE: tl.constexpr,
    SHIFT: tl.constexpr,
    NOISE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    in_n = n < images
    j = tl.arange(0, BLOCK_H)

    # The layer norm's mean and deviation, then the projection in.
    mean = tl.zeros((BLOCK_N,), ACC)
    scale = tl.full((BLOCK_N,), 1, ACC)
    if NORMALISE:
        for step in range(0, tl.cdiv(inputs, BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            mean += tl.sum(_load(pooled, n, in_n, k, inputs, ACC), 1)
        mean = mean / inputs
        square = tl.zeros((BLOCK_N,), ACC)
        for step in range(0, tl.cdiv(inputs, BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            away = _load(pooled, n, in_n, k, inputs, ACC) - mean[:, None]
            square += tl.sum(tl.where((k < inputs)[None, :], away * away, 0), 1)
        scale = 1 / tl.sqrt(square / inputs + EPS)
        tl.store(rstd + n, scale, mask=in_n)
    u = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    for step in range(0, tl.cdiv(inputs, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x = (_load(pooled, n, in_n, k, inputs, ACC) - mean[:, None]) * scale[:, None]
        if NORMALISE:
            _store(normalised, n, in_n, k, inputs, x)
        x = tl.where((k < inputs)[None, :], x, 0)
        tile = _tile(weight_in, k, inputs, 1, j, hidden, inputs, ACC)
        u += tl.sum(x[:, :, None] * tile[None, :, :], 1)
    u += tl.load(bias_in + j, mask=j < hidden, other=0).to(ACC)[None, :]
    _store(projected, n, in_n, j, hidden, u)
    tl.debug_barrier()

    # The LSTM's cell: input, forget, candidate, output.
    cell = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    let_in = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    let_out = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    for part in tl.static_range(4):
        rows = part * hidden
        bias = tl.load(bias_ih + rows + j, mask=j < hidden, other=0).to(ACC)
        bias += tl.load(bias_hh + rows + j, mask=j < hidden, other=0).to(ACC)
        at = rows * hidden
        value = bias[None, :] + _product(
            projected, n, in_n, hidden, weight_ih + at, 1, j, hidden, hidden,
            ACC, BLOCK_N, BLOCK_K, BLOCK_H,
        )  # fmt: skip
        if STATE:
            value += _product(
                h_before, n, in_n, hidden, weight_hh + at, 1, j, hidden, hidden,
                ACC, BLOCK_N, BLOCK_K, BLOCK_H,
            )  # fmt: skip
        if part == 2:
            value = _tanh(value)
            cell += let_in * value
        else:
            value = _sigmoid(value)
        if part == 0:
            let_in = value
        if STATE and part == 1:
            cell = value * _load(c_before, n, in_n, j, hidden, ACC)
        if part == 3:
            let_out = value
        mask = in_n[:, None] & (j < hidden)[None, :]
        to = activations + n[:, None] * (4 * hidden) + rows + j[None, :]
        tl.store(to, value, mask=mask)
    flat = _tanh(cell)
    state = let_out * flat
    _store(c, n, in_n, j, hidden, cell)
    _store(tanh_cell, n, in_n, j, hidden, flat)
    _store(h, n, in_n, j, hidden, state)
    tl.debug_barrier()

    # The projection out and the threshold.
    for block in range(0, tl.cdiv(outputs, BLOCK_C)):
        o = block * BLOCK_C + tl.arange(0, BLOCK_C)
        logit = tl.load(bias_out + o, mask=o < outputs, other=0).to(ACC)[None, :] + _product(
            h, n, in_n, hidden, weight_out, 1, o, outputs, hidden,
            ACC, BLOCK_N, BLOCK_K, BLOCK_C,
        )  # fmt: skip
        if SHIFT:
            own = tl.load(shift + n * shift_stride + shift_column, mask=in_n, other=0).to(ACC)
            logit += own[:, None]
        _store(logits, n, in_n, o, outputs, logit)
        logit = logit / TEMPERATURE
        if NOISE:
            logit += _load(noise, n, in_n, o, outputs, ACC)
        _store(gates, n, in_n, o, outputs, tl.where(logit > 0, 1.0, 0.0).to(ACC))
        steep = tl.full((BLOCK_N, BLOCK_C), 1, ACC)
        if SIGMOID:
            soft = _sigmoid(logit)
            steep = soft * (1 - soft)
        _store(slope, n, in_n, o, outputs, steep / TEMPERATURE)


@triton.jit
def step_gradients_kernel(
    dgates: tl.tensor,
    dlogits: tl.tensor,
    dh: tl.tensor,
    dc: tl.tensor,
    normalised: tl.tensor,
    rstd: tl.tensor,
    activations: tl.tensor,
    tanh_cell: tl.tensor,
    slope: tl.tensor,
    c_before: tl.tensor,
    weight_in: tl.tensor,
    weight_out: tl.tensor,
    weight_ih: tl.tensor,
    weight_hh: tl.tensor,
    dpooled: tl.tensor,
    dh_before: tl.tensor,
    dc_before: tl.tensor,
    to_logits: tl.tensor,
    to_preactivations: tl.tensor,
    to_projected: tl.tensor,
    images: int,
    inputs: int,
    hidden: int,
    outputs: int,
    NORMALISE: tl.constexpr,
    STATE: tl.constexpr,
    DGATES: tl.constexpr,
    DLOGITS: tl.constexpr,
    DH: tl.constexpr,
    DC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    in_n = n < images
    j = tl.arange(0, BLOCK_H)

    # Through the threshold, and the projection out.
    of_h = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    if DH:
        of_h += _load(dh, n, in_n, j, hidden, ACC)
    for step in range(0, tl.cdiv(outputs, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        value = tl.zeros((BLOCK_N, BLOCK_K), ACC)
        if DLOGITS:
            value += _load(dlogits, n, in_n, k, outputs, ACC)
        if DGATES:
            through = _load(dgates, n, in_n, k, outputs, ACC)
            value += through * _load(slope, n, in_n, k, outputs, ACC)
        _store(to_logits, n, in_n, k, outputs, value)
        tile = _tile(weight_out, k, outputs, hidden, j, hidden, 1, ACC)
        of_h += tl.sum(value[:, :, None] * tile[None, :, :], 1)

    # Through the LSTM's cell.
    wide = 4 * hidden
    let_in = _load(activations, n, in_n, j, wide, ACC)
    forget = _load(activations + hidden, n, in_n, j, wide, ACC)
    candidate = _load(activations + 2 * hidden, n, in_n, j, wide, ACC)
    let_out = _load(activations + 3 * hidden, n, in_n, j, wide, ACC)
    flat = _load(tanh_cell, n, in_n, j, hidden, ACC)
    of_c = of_h * let_out * (1 - flat * flat)
    if DC:
        of_c += _load(dc, n, in_n, j, hidden, ACC)
    of_forget = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    if STATE:
        of_forget += of_c * _load(c_before, n, in_n, j, hidden, ACC) * forget * (1 - forget)
        _store(dc_before, n, in_n, j, hidden, of_c * forget)
    to = to_preactivations + n[:, None] * wide + j[None, :]
    mask = in_n[:, None] & (j < hidden)[None, :]
    tl.store(to, of_c * candidate * let_in * (1 - let_in), mask=mask)
    tl.store(to + hidden, of_forget, mask=mask)
    tl.store(to + 2 * hidden, of_c * let_in * (1 - candidate * candidate), mask=mask)
    tl.store(to + 3 * hidden, of_h * flat * let_out * (1 - let_out), mask=mask)
    tl.debug_barrier()
    du = _product(
        to_preactivations, n, in_n, wide, weight_ih, hidden, j, hidden, 1,
        ACC, BLOCK_N, BLOCK_K, BLOCK_H,
    )  # fmt: skip
    _store(to_projected, n, in_n, j, hidden, du)
    if STATE:
        before = _product(
            to_preactivations, n, in_n, wide, weight_hh, hidden, j, hidden, 1,
            ACC, BLOCK_N, BLOCK_K, BLOCK_H,
        )  # fmt: skip
        _store(dh_before, n, in_n, j, hidden, before)
    tl.debug_barrier()

    # Through the projection in, and the layer norm.
    total = tl.zeros((BLOCK_N,), ACC)
    aligned = tl.zeros((BLOCK_N,), ACC)
    for block in range(0, tl.cdiv(inputs, BLOCK_C)):
        i = block * BLOCK_C + tl.arange(0, BLOCK_C)
        value = _product(
            to_projected, n, in_n, hidden, weight_in, inputs, i, inputs, 1,
            ACC, BLOCK_N, BLOCK_K, BLOCK_C,
        )  # fmt: skip
        _store(dpooled, n, in_n, i, inputs, value)
        if NORMALISE:
            total += tl.sum(value, 1)
            aligned += tl.sum(value * _load(normalised, n, in_n, i, inputs, ACC), 1)
    if NORMALISE:
        tl.debug_barrier()
        scale = tl.load(rstd + n, mask=in_n, other=0).to(ACC)
        total = total / inputs
        aligned = aligned / inputs
        for block in range(0, tl.cdiv(inputs, BLOCK_C)):
            i = block * BLOCK_C + tl.arange(0, BLOCK_C)
            x = _load(normalised, n, in_n, i, inputs, ACC)
            value = _load(dpooled, n, in_n, i, inputs, ACC)
            value = (value - total[:, None] - x * aligned[:, None]) * scale[:, None]
            _store(dpooled, n, in_n, i, inputs, value)
