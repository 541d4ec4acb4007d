"""Calls the compiled C++ passes of a gated layer on a CPU; each reads its tensors once.

`passes_reference` shows what they compute. They take float32, bfloat16 and float64 in channels-last
layout; other layouts are copied first. The bits do not depend on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.native import library
from adafilter_dist.models.ops.norm import Affine, Choosers, ChosenMoments, Gradients, Norm
from adafilter_dist.models.ops.pixel_rows import empty_rows, pixel_rows

_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_ARGUMENTS = {
    "moments": "p l lll pppp i",
    "choosers": "pp p i pp d lll p",
    "coefficients": "p ppppd ppppd ll ppp pp",
    "gradients": "pppp pppip pppip l ll p pppp ppp ppp",
    "blend": "pl pl ppp p i lll pp i",
    "sums": "ppp pl pl pp lll ppp i",
    "spread": "ppp pl pl ppp ppp pp lll pp l p i",
}
_SMALL = ("choosers", "coefficients", "gradients")  # on what is as wide as sums
_TYPES: dict[str, Any] = {"p": c_void_p, "l": c_int64, "i": c_int, "d": c_double}


def available(y: Tensor) -> bool:
    """Whether these passes can take y: on the CPU, of a dtype they know, and compiled."""
    return y.device.type == "cpu" and y.dtype in _NAMES and _functions() is not None


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over images and pixels: y (N, C, H, W) -> (C,) each."""
    mean, var = y.new_empty((2, y.shape[1]), dtype=accumulation_dtype(y.dtype)).unbind()
    _moments(y, mean, var)
    return mean, var


def chosen_moments(y: Tensor, choosers: Choosers) -> ChosenMoments:
    """Mean and variance over the images that chose each filter, of y (N, C, H, W)."""
    means, variances = _moments(y).unbind()
    (images, channels), pixels = y.shape[:2], y.shape[2] * y.shape[3]
    rows = means.new_empty(6, channels)
    gates = _for_c(choosers.gates, means)
    running = (_for_c(choosers.mean, means), _for_c(choosers.var, means))
    who: list[Tensor | float] = [gates, int(choosers.tuned), *running, choosers.prior]
    _call("choosers", means, means, variances, *who, images, pixels, channels, rows)
    return ChosenMoments(rows[:3], rows[3:])


def _moments(y: Tensor, mean: Tensor | None = None, var: Tensor | None = None) -> Tensor:
    """Mean and variance of each image, (2, N, C); of all images into `mean` and `var`."""
    (images, channels), pixels = y.shape[:2], y.shape[2] * y.shape[3]
    y, stride = pixel_rows(y)
    each = y.new_empty((2, images, channels), dtype=accumulation_dtype(y.dtype))
    to = (each[0], each[1], mean, var, torch.get_num_threads())
    _call("moments", y, y, stride, images, pixels, channels, *to)
    return each


def coefficients(
    gates: Tensor, norm1: Norm, norm2: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """a1, a2, b (N, C) of `blend`, and 1 / standard deviation of both branches (C,)."""
    images, channels = gates.shape
    wide = norm1.mean
    g = _for_c(gates, wide)
    a1, a2, b = wide.new_empty((3, images, channels)).unbind()
    rstd1, rstd2 = wide.new_empty((2, channels)).unbind()
    tensors = [
        [_for_c(each, wide) for each in (*norm.affine(), norm.mean, norm.var)]
        for norm in (norm1, norm2)
    ]
    norms: list[Tensor | float] = [*tensors[0], norm1.eps, *tensors[1], norm2.eps]
    _call("coefficients", wide, g, *norms, images, channels, a1, a2, b, rstd1, rstd2)
    return a1, a2, b, rstd1, rstd2


def blend(
    y1: Tensor,
    y2: Tensor,
    a1: Tensor,
    a2: Tensor,
    b: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """a1 y1 + a2 y2 + b (+ residual), then perhaps ReLU, and its mean; a1, a2, b (N, C)."""
    (images, channels), pixels = y1.shape[:2], y1.shape[2] * y1.shape[3]
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2.to(y1.dtype))
    third = None if residual is None else _dense(residual, y1)
    small = [_for_c(each, y1) for each in (a1, a2, b)]
    out = empty_rows(y1, channels)
    mean = y1.new_empty((images, channels), dtype=accumulation_dtype(y1.dtype))
    places = (y1, stride1, y2, stride2, *small, third, int(relu))
    to = (out, mean, torch.get_num_threads())
    _call("blend", y1, *places, images, pixels, channels, *to)
    return out, mean


def sums(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the pixels of each image of dz, dz (y1 - m1) and dz (y2 - m2): (N, C) each."""
    (images, channels), pixels = y1.shape[:2], y1.shape[2] * y1.shape[3]
    s0, s1, s2 = y1.new_empty((3, images, channels), dtype=accumulation_dtype(y1.dtype))
    means = (_for_c(m1, y1), _for_c(m2, y1))
    to = (s0, s1, s2, torch.get_num_threads())
    places = _activations(dout, more, out, y1, y2)
    _call("sums", y1, *places, *means, images, pixels, channels, *to)
    return s0, s1, s2


def gradients(
    gates: Tensor,
    s0: Tensor,
    s1: Tensor,
    s2: Tensor,
    first: Affine,
    second: Affine,
    pixels: int,
) -> Gradients:
    """All small gradients, and the coefficients of `spread`, from `sums`."""
    images, channels = gates.shape
    g = _for_c(gates, s0)
    dgates, p1, q1, r1, p2, q2, r2 = s0.new_empty((7, images, channels)).unbind()
    affine = [
        [_for_c(tensor, s0) for tensor in (of.weight, of.bias, of.rstd)] for of in (first, second)
    ]
    totals = [None if of.total is None else _for_c(of.total, s0) for of in (first, second)]
    norms = (*affine[0], first.batch, totals[0], *affine[1], second.batch, totals[1])
    dweight1, dbias1, dweight2, dbias2 = s0.new_empty((4, channels)).unbind()
    to = (dgates, dweight1, dbias1, dweight2, dbias2, p1, q1, r1, p2, q2, r2)
    _call("gradients", s0, g, s0, s1, s2, *norms, pixels, images, channels, *to)
    return Gradients(dgates, dweight1, dbias1, dweight2, dbias2, (p1, q1, r1), (p2, q2, r2))


def spread(
    dout: Tensor,
    more: Tensor | None,
    out: Tensor | None,
    y1: Tensor,
    y2: Tensor,
    m1: Tensor,
    m2: Tensor,
    p1: Tensor,
    q1: Tensor,
    r1: Tensor,
    p2: Tensor,
    q2: Tensor,
    r2: Tensor,
    *,
    want_residual: bool = False,
    stacked: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of both convolutions' outputs: dy_k = p_k dz + q_k (y_k - m_k) + r_k.

    p, q, r (N, C), or q, r (C,) that all images share.
    """
    (images, channels), pixels = y1.shape[:2], y1.shape[2] * y1.shape[3]
    of_image = [each.expand(images, channels) for each in (q1, r1, q2, r2, p1, p2)]
    q1, r1, q2, r2, p1, p2 = of_image
    small = [_for_c(each, y1) for each in (m1, q1, r1, m2, q2, r2, p1, p2)]
    if stacked:
        both = empty_rows(y1, 2 * channels)
        dy1, dy2 = both.split(channels, 1)
    else:
        dy1, dy2 = empty_rows(y1, channels), empty_rows(y1, channels)
    dz = empty_rows(y1, channels) if want_residual else None
    to = (dy1, dy2, channels * (1 + stacked), dz, torch.get_num_threads())
    places = _activations(dout, more, out, y1, y2)
    _call("spread", y1, *places, *small, images, pixels, channels, *to)
    return (both, dz) if stacked else (dy1, dy2, dz)


@functools.cache
def _functions() -> dict[str, Callable[..., None]] | None:
    """Each pass for each dtype, by its name in the library; None where nothing is compiled."""
    compiled = library(Path(__file__).with_name("passes.cpp"))
    if compiled is None:
        return None
    functions: dict[str, Callable[..., None]] = {}
    for name, letters in _ARGUMENTS.items():
        for dtype in ("float32", "float64") if name in _SMALL else _NAMES.values():
            function = compiled[f"{name}_{dtype}"]
            function.argtypes = [_TYPES[letter] for letter in letters.replace(" ", "")]
            function.restype = None
            functions[f"{name}_{dtype}"] = function
    return functions


def _call(name: str, like: Tensor, *arguments: Tensor | float | None) -> None:
    """Call a pass for the dtype of ``like``; it gets the addresses of tensors."""
    functions = _functions()
    assert functions is not None, "available() was not asked"
    values = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
    functions[f"{name}_{_NAMES[like.dtype]}"](*values)


# The C++ code gets bare pointers, so dtype and layout must be right before a call: small tensors
# (by channel, or by image and channel) through `_for_c`, activations through `_dense`.
def _for_c(coefficient: Tensor, like: Tensor) -> Tensor:
    return coefficient.to(accumulation_dtype(like.dtype)).contiguous()


def _activations(
    dout: Tensor, more: Tensor | None, out: Tensor | None, y1: Tensor, y2: Tensor
) -> tuple[Tensor | int | None, ...]:
    """What both backward passes read of each pixel."""
    also = None if more is None else _for_c(more, y1)
    output = None if out is None else _dense(out, y1)
    return _dense(dout, y1), also, output, *pixel_rows(y1), *pixel_rows(y2.to(y1.dtype))


def _dense(y: Tensor, like: Tensor) -> Tensor:
    """y (N, C, H, W) with pixels one after another, channels side by side, in the other's dtype."""
    y = y.to(like.dtype)
    rows, stride = pixel_rows(y)
    if stride == y.shape[1]:
        return rows
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)
