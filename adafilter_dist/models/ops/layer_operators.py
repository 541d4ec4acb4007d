"""The operators of a gated layer in Triton: what they allocate and launch.

For CUDA tensors, channels-last or halves of a stacked tensor (others are copied first). No atomics:
two runs give the same bits. What follows from shapes and layouts is prepared once (`layer_plans`).
Importing this needs triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.ops import layer_plans as plans
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.launches import here
from adafilter_dist.models.ops.operators import operator
from adafilter_dist.models.ops.pixel_rows import empty_rows, pixel_rows

__all__ = ["choose", "forward", "layer_gradients", "statistics"]


def _statistics(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norms: list[Tensor],
    sums1: Tensor,
    sums2: Tensor,
    kinds: list[int],
    eps: list[float],
    groups: int,
    prior: float,
) -> Tensor:
    layout2 = None if y2 is None else y2.stride()
    how = (tuple(kinds), tuple(eps), groups, prior)
    plan = plans.statistics(y1.shape, y1.stride(), layout2, gates.shape[1], y1.dtype, *how)
    if plan is None:
        y1, y2 = _copied(y1), _copied(y2)
        return _statistics(y1, y2, gates, norms, sums1, sums2, kinds, eps, groups, prior)
    place = here(y1)
    rows = y1.new_empty(plan.rows, dtype=plan.wide)
    moments = y1.new_empty(plan.moments, dtype=torch.float64)
    plan.first(place, y1, moments)
    if y2 is not None:
        plan.second(place, y2, moments)
    weight1, bias1, mean1, var1, weight2, bias2, mean2, var2 = norms
    first, second = (weight1, bias1, mean1, var1, sums1), (weight2, bias2, mean2, var2, sums2)
    plan.both(place, moments, _contiguous(gates), *first, *second, rows)
    return rows


def _empty_statistics(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norms: list[Tensor],
    sums1: Tensor,
    sums2: Tensor,
    kinds: list[int],
    eps: list[float],
    groups: int,
    prior: float,
) -> Tensor:
    return y1.new_empty(10, groups, gates.shape[1], dtype=accumulation_dtype(y1.dtype))


def _choose(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    rows: Tensor,
    residual: Tensor | None,
    groups: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    layout2 = None if y2 is None else y2.stride()
    layout3 = None if residual is None else residual.stride()
    layouts = (y1.stride(), layout2, layout3)
    plan = plans.choice(y1.shape, layouts, gates.shape[1], y1.dtype, groups, relu)
    if plan is None:
        y1, y2, residual = _copied(y1), _copied(y2), _copied(residual)
        return _choose(y1, y2, gates, rows, residual, groups, relu)
    out = y1.new_empty_strided(*plan.out)
    mean = y1.new_empty(plan.mean, dtype=plan.wide)
    second, third = y1 if y2 is None else y2, y1 if residual is None else residual
    plan.launch(here(y1), y1, second, _contiguous(gates), rows, third, out, mean)
    return out, mean if plan.splits == 1 else mean.sum(0)


def _empty_choice(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    rows: Tensor,
    residual: Tensor | None,
    groups: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    return empty_rows(y1, gates.shape[1]), gates.new_empty(gates.shape, dtype=rows.dtype)


def _layer_gradients(
    dout: Tensor,
    dmean: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    affine: list[Tensor],
    rows: Tensor,
    kinds: list[int],
    groups: int,
    want_residual: bool,
) -> list[Tensor]:
    layout2 = None if y2 is None else y2.stride()
    layout_out = None if out is None else out.stride()
    layouts = (y1.stride(), layout2, dout.stride(), layout_out)
    how = (tuple(kinds), groups, want_residual, dmean is not None)
    plan = plans.gradients(y1.shape, layouts, gates.shape[1], y1.dtype, *how)
    if plan is None:
        dout, out, y1, y2 = _copied(dout), _copied(out), _copied(y1), _copied(y2)
        more = (affine, rows, kinds, groups, want_residual)
        return _layer_gradients(dout, dmean, out, y1, y2, gates, *more)
    place = here(y1)
    # Results, and the sums over pixels with what follows from them.
    new, channels = rows.new_empty, plan.channels
    dgates, dweight1, dbias1 = new(plan.gates), new(channels), new(channels)
    dweight2, dbias2 = new(channels), new(channels)
    dy1 = y1.new_empty_strided(*plan.dy)
    results = [dgates, dweight1, dbias1, dweight2, dbias2, dy1]
    dy2, dresidual = dy1, dy1
    if y2 is not None:
        dy2 = y1.new_empty_strided(*plan.dy)
        results.append(dy2)
    if want_residual:
        dresidual = y1.new_empty_strided(*plan.residual)
        results.append(dresidual)
    work = new(plan.work)

    second, act = y1 if y2 is None else y2, dout if out is None else out
    more_dout = rows if dmean is None else _contiguous(dmean)
    gates = _contiguous(gates)
    plan.sums(place, dout, more_dout, act, y1, second, rows, work)
    of_affine = (dweight1, dbias1, dweight2, dbias2)
    plan.small(place, gates, work, rows, *affine, dgates, *of_affine)
    dys = (dy1, dy2, dresidual)
    plan.spread(place, dout, more_dout, act, y1, second, gates, rows, work, *dys)
    return results


def _like_gradients(
    dout: Tensor,
    dmean: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    affine: list[Tensor],
    rows: Tensor,
    kinds: list[int],
    groups: int,
    want_residual: bool,
) -> list[Tensor]:
    channels = gates.shape[1]
    small = [rows.new_empty(gates.shape), *(rows.new_empty(channels) for _ in range(4))]
    widths = [2 * channels] if y2 is None else [channels, channels]
    return small + [empty_rows(y1, each) for each in widths + [channels] * want_residual]


def _forward(
    y1: Tensor,
    y2: Tensor | None,
    gates: Tensor,
    norms: list[Tensor],
    sums1: Tensor,
    sums2: Tensor,
    kinds: list[int],
    eps: list[float],
    groups: int,
    prior: float,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _statistics(y1, y2, gates, norms, sums1, sums2, kinds, eps, groups, prior)
    out, mean = _choose(y1, y2, gates, rows, residual, groups, relu)
    return rows, out, mean, out.detach()


def _copied(y: Tensor | None) -> Any:
    """y in a layout of its kernels, a copy where its own is none."""
    return None if y is None else pixel_rows(y)[0]


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.contiguous()


_SUMS = ("sums1", "sums2")
statistics = operator("layer_statistics", _statistics, _empty_statistics, mutates=_SUMS)
"""`rows` of `coefficients_kernels`, from y1 (N, 2C, H, W), or y1 and y2 (N, C, H, W).

`norms` are weight, bias, running mean and variance of the tuned branch, then of the frozen one.
"""
choose = operator("choose", _choose, _empty_choice)
"""The layer's output (N, C, H, W) and its mean over the pixels (N, C)."""
forward = operator("layer_forward", _forward, mutates=_SUMS)
"""Both at once: rows, output and mean, and the output again, to be kept for backward.

Autograd would make an alias of the output itself, and one more in backward.
"""
layer_gradients = operator("layer_gradients", _layer_gradients, _like_gradients)
"""Of gates and both affine pairs, dy (stacked) or dy1 and dy2, perhaps of the residual."""
