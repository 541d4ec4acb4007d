"""A step of the recurrent gate as one Triton kernel forward and one backward.

What they compute: `gate_step_reference`. Importing this needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from adafilter_dist.models.ops import gate_step_kernels as kernels
from adafilter_dist.models.ops.gate_step_reference import (
    EPS,
    Cell,
    Kept,
    Layer,
    Rule,
    StepGradients,
)

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
    made = _step(pooled, weights, h, c, values, column, noise, rule.temperature, normalise)
    gates, logits, h_next, c_next, projected, activations, tanh_cell, copy, *more = made
    normalised, rstd = more if normalise else (pooled, None)
    kept = Kept(normalised, rstd, projected, activations, tanh_cell, copy)
    return gates, logits, h_next, c_next, kept


def gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    kept: Kept,
    logits: Tensor,
    noise: Tensor | None,
    cell_before: Tensor | None,
    layer: Layer,
    cell: Cell,
    rule: Rule,
) -> StepGradients:
    """From those of gates, logits, h and c, of which None are zero."""
    small = [kept.normalised, kept.activations, kept.tanh_cell, logits]
    weights = [layer.weight_in, layer.weight_out, cell.weight_ih, cell.weight_hh]
    how = (rule.temperature, rule.sigmoid)
    made = _gradients(*grads, small, kept.rstd, noise, cell_before, weights, *how)
    dpooled, of_logits, of_preactivations, of_projected, *before = made
    h, c = before or (None, None)
    return StepGradients(dpooled, h, c, of_logits, of_preactivations, of_projected)


@custom_op("adafilter::gate_step", mutates_args=())
def _step(
    pooled: Tensor,
    weights: list[Tensor],
    h: Tensor | None,
    c: Tensor | None,
    shift: Tensor | None,
    column: int,
    noise: Tensor | None,
    temperature: float,
    normalise: bool,
) -> list[Tensor]:
    images, inputs = pooled.shape
    outputs, hidden = weights[2].shape
    new = pooled.new_empty
    gates, logits = new(images, outputs), new(images, outputs)
    h_next, c_next, projected, tanh_cell, copy = (new(images, hidden) for _ in range(5))
    activations = new(images, 4 * hidden)
    more = [new(images, inputs), new(images, 1)] if normalise else []
    normalised, rstd = more or (gates, gates)
    pooled = pooled.contiguous()
    with torch.cuda.device_of(pooled):
        kernels.step_kernel[(triton.cdiv(images, _BLOCK_N),)](
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
            images,
            inputs,
            hidden,
            outputs,
            0 if shift is None or len(shift) == 1 else shift.stride(0),
            column,
            TEMPERATURE=temperature,
            EPS=EPS,
            NORMALISE=normalise,
            STATE=h is not None,
            SHIFT=shift is not None,
            NOISE=noise is not None,
            ACC=_accumulation(pooled),
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            BLOCK_H=triton.next_power_of_2(hidden),
            BLOCK_C=_BLOCK_C,
            enable_fp_fusion=True,
        )
    return [gates, logits, h_next, c_next, projected, activations, tanh_cell, copy, *more]


@custom_op("adafilter::gate_step_gradients", mutates_args=())
def _gradients(
    dgates: Tensor | None,
    dlogits: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    kept: list[Tensor],
    rstd: Tensor | None,
    noise: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    temperature: float,
    sigmoid: bool,
) -> list[Tensor]:
    normalised, activations, tanh_cell, logits = kept
    (images, inputs), hidden = normalised.shape, tanh_cell.shape[1]
    outputs = logits.shape[1]
    new = logits.new_empty
    dpooled, of_logits = new(images, inputs), new(images, outputs)
    of_preactivations, of_projected = new(images, 4 * hidden), new(images, hidden)
    before = [] if c is None else [new(images, hidden), new(images, hidden)]
    dh_before, dc_before = before or (of_projected, of_projected)
    grads = (dgates, dlogits, dh, dc)
    with torch.cuda.device_of(logits):
        kernels.step_gradients_kernel[(triton.cdiv(images, _BLOCK_N),)](
            *(logits if each is None else each.contiguous() for each in grads),
            normalised,
            logits if rstd is None else rstd,
            activations,
            tanh_cell,
            logits,
            logits if noise is None else noise,
            logits if c is None else c,
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
            TEMPERATURE=temperature,
            SIGMOID=sigmoid,
            NORMALISE=rstd is not None,
            STATE=c is not None,
            NOISE=noise is not None,
            DGATES=dgates is not None,
            DLOGITS=dlogits is not None,
            DH=dh is not None,
            DC=dc is not None,
            ACC=_accumulation(logits),
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            BLOCK_H=triton.next_power_of_2(hidden),
            BLOCK_C=_BLOCK_C,
            enable_fp_fusion=True,
        )
    return [dpooled, of_logits, of_preactivations, of_projected, *before]


def _accumulation(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
