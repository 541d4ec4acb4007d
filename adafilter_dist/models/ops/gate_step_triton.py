"""A step of the recurrent gate as one Triton kernel forward and one backward.

What they compute: `gate_step_reference`. Importing this needs triton.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from adafilter_dist.models.ops import gate_step_kernels as kernels
from adafilter_dist.models.ops.gate_step_reference import (
    EPS,
    Cell,
    Kept,
    Layer,
    Rule,
    StepGradients,
)
from adafilter_dist.models.ops.operators import operator
from adafilter_dist.models.ops.tiles import cdiv, next_power_of_2

__all__ = ["gradients", "step"]
_BLOCK_N, _BLOCK_K, _BLOCK_C = 2, 16, 128


def step(
    pooled: Tensor,
    layer: Layer,
    cell: Cell,
    state: tuple[Tensor, Tensor] | None,
    rule: Rule,
    shift: tuple[Tensor, int] | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Kept]:
    """Gates, logits (N, C_out), h, c (N, H), and what backward needs."""
    h, c = (None, None) if state is None else state
    values, column = (None, 0) if shift is None else shift
    weights = [layer.weight_in, layer.bias_in, layer.weight_out, layer.bias_out, *cell]
    normalise = rule.normalise
    how = (rule.temperature, rule.sigmoid, normalise)
    made = _step(pooled, weights, h, c, values, column, noise, *how)
    gates, logits, h_next, c_next, projected, activations, tanh_cell, copy, slope, *more = made
    normalised, rstd = more if normalise else (pooled, None)
    kept = Kept(normalised, rstd, projected, activations, tanh_cell, copy, slope)
    return gates, logits, h_next, c_next, kept


def gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    kept: Kept,
    cell_before: Tensor | None,
    layer: Layer,
    cell: Cell,
) -> StepGradients:
    """From those of gates, logits, h and c, of which None are zero."""
    small = [kept.normalised, kept.activations, kept.tanh_cell, kept.slope]
    weights = [layer.weight_in, layer.weight_out, cell.weight_ih, cell.weight_hh]
    made = _gradients(*grads, small, kept.rstd, cell_before, weights)
    dpooled, of_logits, of_preactivations, of_projected, *before = made
    h, c = before or (None, None)
    return StepGradients(dpooled, h, c, of_logits, of_preactivations, of_projected)


def _step_body(
    pooled: Tensor,
    weights: list[Tensor],
    h: Tensor | None,
    c: Tensor | None,
    shift: Tensor | None,
    column: int,
    noise: Tensor | None,
    temperature: float,
    sigmoid: bool,
    normalise: bool,
) -> list[Tensor]:
    images, inputs = pooled.shape
    outputs, hidden = weights[2].shape
    new = pooled.new_empty
    gates, logits, slope = (new(images, outputs) for _ in range(3))
    h_next, c_next, projected, tanh_cell, copy = (new(images, hidden) for _ in range(5))
    activations = new(images, 4 * hidden)
    more = [new(images, inputs), new(images, 1)] if normalise else []
    normalised, rstd = more or (gates, gates)
    pooled = pooled.contiguous()
    with torch.cuda.device_of(pooled):
        kernels.step_kernel[(cdiv(images, _BLOCK_N),)](
            pooled,
            *weights,
            pooled if h is None else h,
            pooled if c is None else c,
            pooled if shift is None else shift,
            pooled if noise is None else noise,
            gates,
            logits,
            h_next,
            c_next,
            normalised,
            rstd,
            projected,
            activations,
            tanh_cell,
            copy,
            slope,
            images,
            inputs,
            hidden,
            outputs,
            0 if shift is None or len(shift) == 1 else shift.stride(0),
            column,
            TEMPERATURE=temperature,
            EPS=EPS,
            SIGMOID=sigmoid,
            NORMALISE=normalise,
            STATE=h is not None,
            SHIFT=shift is not None,
            NOISE=noise is not None,
            ACC=_accumulation(pooled),
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            BLOCK_H=next_power_of_2(hidden),
            BLOCK_C=_BLOCK_C,
            enable_fp_fusion=True,
        )
    return [gates, logits, h_next, c_next, projected, activations, tanh_cell, copy, slope, *more]


def _gradients_body(
    dgates: Tensor | None,
    dlogits: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    kept: list[Tensor],
    rstd: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
) -> list[Tensor]:
    normalised, activations, tanh_cell, slope = kept
    (images, inputs), hidden = normalised.shape, tanh_cell.shape[1]
    outputs = slope.shape[1]
    new = slope.new_empty
    dpooled, of_logits = new(images, inputs), new(images, outputs)
    of_preactivations, of_projected = new(images, 4 * hidden), new(images, hidden)
    before = [] if c is None else [new(images, hidden), new(images, hidden)]
    dh_before, dc_before = before or (of_projected, of_projected)
    grads = (dgates, dlogits, dh, dc)
    with torch.cuda.device_of(slope):
        kernels.step_gradients_kernel[(cdiv(images, _BLOCK_N),)](
            *(slope if each is None else each.contiguous() for each in grads),
            normalised,
            slope if rstd is None else rstd,
            activations,
            tanh_cell,
            slope,
            slope if c is None else c,
            *weights,
            dpooled,
            dh_before,
            dc_before,
            of_logits,
            of_preactivations,
            of_projected,
            images,
            inputs,
            hidden,
            outputs,
            NORMALISE=rstd is not None,
            STATE=c is not None,
            DGATES=dgates is not None,
            DLOGITS=dlogits is not None,
            DH=dh is not None,
            DC=dc is not None,
            ACC=_accumulation(slope),
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            BLOCK_H=next_power_of_2(hidden),
            BLOCK_C=_BLOCK_C,
            enable_fp_fusion=True,
        )
    return [dpooled, of_logits, of_preactivations, of_projected, *before]


def _accumulation(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


_step = operator("gate_step", _step_body)
_gradients = operator("gate_step_gradients", _gradients_body)
