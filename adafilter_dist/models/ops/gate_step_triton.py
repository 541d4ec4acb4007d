"""A step of the recurrent gate as one Triton kernel forward and one backward.

What they compute: `gate_step_reference`. Importing this needs triton.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

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
from adafilter_dist.models.ops.launches import Launch, here
from adafilter_dist.models.ops.operators import operator
from adafilter_dist.models.ops.tiles import cdiv, next_power_of_2

__all__ = ["gradients", "step"]
_BLOCK_N, _BLOCK_K, _BLOCK_C = 2, 16, 128
_KEPT = 4096


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
    gates, logits, h_next, c_next = made[:4]
    projected, activations, tanh_cell, hidden, slope = made[4:9]
    gates_kept, *more = made[9:]
    normalised, rstd = more if normalise else (pooled, None)
    kept = Kept(normalised, rstd, projected, activations, tanh_cell, hidden, slope, gates_kept)
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
    has = (h is not None, shift is not None, noise is not None)
    shift_stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    how = (temperature, sigmoid, normalise, *has, shift_stride, column)
    plan = _step_plan(pooled.shape, weights[2].shape, pooled.dtype, *how)
    pooled = pooled if pooled.is_contiguous() else pooled.contiguous()
    new, of_outputs, of_hidden = pooled.new_empty, plan.outputs, plan.hidden
    gates, logits, slope = new(of_outputs), new(of_outputs), new(of_outputs)
    h_next, c_next = new(of_hidden), new(of_hidden)
    projected, tanh_cell = new(of_hidden), new(of_hidden)
    activations = new(plan.activations)
    more = [new(pooled.shape), new(plan.column)] if normalise else []
    normalised, rstd = more or (gates, gates)
    plan.launch(
        here(pooled),
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
        slope,
    )
    # h and gates once more: as outputs they belong to autograd's graph, which would then refer to
    # itself.
    of_cell = [projected, activations, tanh_cell, h_next.detach()]
    return [gates, logits, h_next, c_next, *of_cell, slope, gates.detach(), *more]


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
    has = (rstd is not None, c is not None)
    grads = (dgates, dlogits, dh, dc)
    has_grads = tuple([each is not None for each in grads])
    shapes = (normalised.shape, slope.shape, weights[3].shape)
    plan = _gradients_plan(*shapes, slope.dtype, *has, has_grads)
    new, of_hidden = slope.new_empty, plan.hidden
    dpooled, of_logits = new(normalised.shape), new(plan.outputs)
    of_preactivations, of_projected = new(plan.activations), new(of_hidden)
    before = [] if c is None else [new(of_hidden), new(of_hidden)]
    dh_before, dc_before = before or (of_projected, of_projected)
    plan.launch(
        here(slope),
        *[
            slope if each is None else each if each.is_contiguous() else each.contiguous()
            for each in grads
        ],
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
    )
    return [dpooled, of_logits, of_preactivations, of_projected, *before]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a step or its backward allocates and launches."""

    outputs: tuple[int, int]
    hidden: tuple[int, int]
    activations: tuple[int, int]
    column: tuple[int, int]
    launch: Launch


@functools.lru_cache(maxsize=_KEPT)
def _step_plan(
    shape: tuple[int, int],
    of_weight: tuple[int, int],
    dtype: torch.dtype,
    temperature: float,
    sigmoid: bool,
    normalise: bool,
    has_state: bool,
    has_shift: bool,
    has_noise: bool,
    shift_stride: int,
    column: int,
) -> _Plan:
    """For pooled features of `shape`, and the weight (C_out, H) of the projection out."""
    (images, inputs), (outputs, hidden) = shape, of_weight
    launch = Launch(
        kernels.step_kernel,
        cdiv(images, _BLOCK_N),
        (images, inputs, hidden, outputs, shift_stride, column),
        {
            "TEMPERATURE": temperature,
            "EPS": EPS,
            "SIGMOID": sigmoid,
            "NORMALISE": normalise,
            "STATE": has_state,
            "SHIFT": has_shift,
            "NOISE": has_noise,
            **_blocks(dtype, hidden),
        },
    )
    return _plan(images, outputs, hidden, launch)


@functools.lru_cache(maxsize=_KEPT)
def _gradients_plan(
    shape: tuple[int, int],
    of_outputs: tuple[int, int],
    of_cell: tuple[int, int],
    dtype: torch.dtype,
    normalise: bool,
    has_state: bool,
    has_grads: tuple[bool, bool, bool, bool],
) -> _Plan:
    """For pooled features of `shape`, gates of `of_outputs`, and the cell's weight (4H, H)."""
    (images, inputs), outputs, hidden = shape, of_outputs[1], of_cell[1]
    dgates, dlogits, dh, dc = has_grads
    launch = Launch(
        kernels.step_gradients_kernel,
        cdiv(images, _BLOCK_N),
        (images, inputs, hidden, outputs),
        {
            "NORMALISE": normalise,
            "STATE": has_state,
            "DGATES": dgates,
            "DLOGITS": dlogits,
            "DH": dh,
            "DC": dc,
            **_blocks(dtype, hidden),
        },
    )
    return _plan(images, outputs, hidden, launch)


def _blocks(dtype: torch.dtype, hidden: int) -> dict[str, Any]:
    return {
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_N": _BLOCK_N,
        "BLOCK_K": _BLOCK_K,
        "BLOCK_H": next_power_of_2(hidden),
        "BLOCK_C": _BLOCK_C,
        "enable_fp_fusion": True,
    }


def _plan(images: int, outputs: int, hidden: int, launch: Launch) -> _Plan:
    return _Plan((images, outputs), (images, hidden), (images, 4 * hidden), (images, 1), launch)


_step = operator("gate_step", _step_body)
_gradients = operator("gate_step_gradients", _gradients_body)
