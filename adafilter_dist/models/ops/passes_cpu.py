"""The four passes of a gated layer on a CPU, compiled: one walk through memory each.

What they compute: `passes_reference`. For channels-last float32, bfloat16 and float64 (others are
copied into that layout first). The bits do not depend on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.models.ops.native import library
from adafilter_dist.models.ops.passes_reference import accumulation_dtype
from adafilter_dist.models.ops.pixel_rows import empty_rows, pixel_rows

_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_ARGUMENTS = {
    "moments": "p l lll pp i",
    "blend": "pl pl ppp p i lll pp i",
    "sums": "ppp pl pl pp lll ppp i",
    "spread": "ppp pl pl ppp lll pp l p i",
}
_TYPES: dict[str, Any] = {"p": c_void_p, "l": c_int64, "i": c_int}


def available(y: Tensor) -> bool:
    """Whether these passes can take y: on the CPU, of a dtype they know, and compiled."""
    return y.device.type == "cpu" and y.dtype in _NAMES and _functions() is not None


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over images and pixels: y (N, C, H, W) -> (C,) each."""
    (images, channels), pixels = y.shape[:2], y.shape[2] * y.shape[3]
    y, stride = pixel_rows(y)
    mean, var = y.new_empty((2, images, channels), dtype=accumulation_dtype(y.dtype))
    _call("moments", y, _at(y), stride, images, pixels, channels, _at(mean), _at(var))
    # Of all images, from those of each, which have the same number of pixels.
    spread_of_means, middle = torch.var_mean(mean, 0, correction=0)
    return middle, var.mean(0) + spread_of_means


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
    small = [_small(each, y1) for each in (a1, a2, b)]
    out = empty_rows(y1, channels)
    mean = y1.new_empty((images, channels), dtype=accumulation_dtype(y1.dtype))
    places = (_at(y1), stride1, _at(y2), stride2, *map(_at, small), _at(third), int(relu))
    _call("blend", y1, *places, images, pixels, channels, _at(out), _at(mean))
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
    dout, kept = _dense(dout, y1), None if out is None else _dense(out, y1)
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2.to(y1.dtype))
    s0, s1, s2 = y1.new_empty((3, images, channels), dtype=accumulation_dtype(y1.dtype))
    means = (_small(m1, y1), _small(m2, y1))
    also = None if more is None else _small(more, y1)
    places = (_at(dout), _at(also), _at(kept), _at(y1), stride1, _at(y2), stride2, *map(_at, means))
    _call("sums", y1, *places, images, pixels, channels, _at(s0), _at(s1), _at(s2))
    return s0, s1, s2


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
    """Gradients of both convolutions' outputs: dy_k = p_k dz + q_k (y_k - m_k) + r_k."""
    (images, channels), pixels = y1.shape[:2], y1.shape[2] * y1.shape[3]
    dout, kept = _dense(dout, y1), None if out is None else _dense(out, y1)
    y1, stride1 = pixel_rows(y1)
    y2, stride2 = pixel_rows(y2.to(y1.dtype))
    small = [_small(each, y1) for each in (torch.stack((m1, q1, r1, m2, q2, r2)), p1, p2)]
    if stacked:
        both = empty_rows(y1, 2 * channels)
        dy1, dy2 = both.split(channels, 1)
    else:
        dy1, dy2 = empty_rows(y1, channels), empty_rows(y1, channels)
    dz = empty_rows(y1, channels) if want_residual else None
    also = None if more is None else _small(more, y1)
    places = (_at(dout), _at(also), _at(kept), _at(y1), stride1, _at(y2), stride2, *map(_at, small))
    to = (_at(dy1), _at(dy2), channels * (1 + stacked), _at(dz))
    _call("spread", y1, *places, images, pixels, channels, *to)
    return (both, dz) if stacked else (dy1, dy2, dz)


@functools.cache
def _functions() -> dict[str, Callable[..., None]] | None:
    """Each pass for each dtype, by its name in the library; None where nothing is compiled."""
    compiled = library("passes.cpp")
    if compiled is None:
        return None
    found: dict[str, Callable[..., None]] = {}
    for name, letters in _ARGUMENTS.items():
        for dtype in _NAMES.values():
            function = compiled[f"{name}_{dtype}"]
            function.argtypes = [_TYPES[letter] for letter in letters.replace(" ", "")]
            function.restype = None
            found[f"{name}_{dtype}"] = function
    return found


def _call(name: str, like: Tensor, *arguments: int | None) -> None:
    functions = _functions()
    assert functions is not None, "available() was not asked"
    functions[f"{name}_{_NAMES[like.dtype]}"](*arguments, torch.get_num_threads())


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# Beyond these lies C, which takes every pointer for what it was compiled for.
def _small(coefficient: Tensor, like: Tensor) -> Tensor:
    return coefficient.to(accumulation_dtype(like.dtype)).contiguous()


def _dense(y: Tensor, like: Tensor) -> Tensor:
    """y (N, C, H, W) with pixels one after another, channels side by side, in the other's dtype."""
    y = y.to(like.dtype)
    rows, stride = pixel_rows(y)
    if stride == y.shape[1]:
        return rows
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)
