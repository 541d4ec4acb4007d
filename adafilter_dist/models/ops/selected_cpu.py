"""The CPU's kernel for images that have chosen different filters: `selected_cpu.c`, called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from adafilter_dist.models.fold import BareConv
from adafilter_dist.models.ops.native import library


def can_compute(conv: BareConv, x: Tensor, rows: Tensor) -> bool:
    """Whether `selected_conv` computes this: float32 on a CPU, one group, plain, no gradient."""
    return (
        x.device.type == "cpu"
        and x.dtype == rows.dtype == torch.float32
        and conv.plain
        and conv.groups == 1
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and _kernel() is not None
    )


def selected_conv(
    conv: BareConv,
    x: Tensor,
    rows: Tensor,
    bias: Tensor,
    chosen: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y (N, C, H', W') of x (N, C_in, H, W): channel c of image n by filter rows[chosen[n, c]].

    Then + residual, float32 like y, and perhaps ReLU. rows (T, KH, KW, C_in), bias (T,), chosen
    int64 (N, C), of at most two rows a channel. Where `can_compute` says so.
    """
    kernel = _kernel()
    assert kernel is not None
    height, width = conv.output_size(x)
    images, channels, *size = x.shape
    down, right = conv.padding
    room = (images, size[0] + 2 * down, size[1] + 2 * right, channels)
    padded = torch.empty(room) if down or right else None
    pixels, rows, bias, chosen = (
        t.contiguous() for t in (x.permute(0, 2, 3, 1), rows, bias, chosen)
    )
    more = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    y = torch.empty(images, height, width, chosen.shape[1])
    if y.numel():
        tensors = (pixels, padded, rows, bias, chosen, more, y)
        failed = kernel(
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            *pixels.shape,
            chosen.shape[1],
            *conv.kernel,
            *(height, width),
            *conv.stride,
            *conv.dilation,
            *conv.padding,
            relu,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for the filters of a convolution")
    return y.permute(0, 3, 1, 2)


@cache
def _kernel() -> Callable[..., int] | None:
    """The compiled function, or None where it cannot be had: other ways are used then."""
    compiled = library("selected_cpu.c")
    if compiled is None:
        return None
    function = compiled.selected_conv
    function.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 15 + [ctypes.c_int] * 2
    function.restype = ctypes.c_int
    typed: Callable[..., int] = function
    return typed
