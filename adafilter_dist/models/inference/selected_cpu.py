"""The CPU's kernel for images that have chosen different filters: `selected_cpu.c`, called."""

from __future__ import annotations

import ctypes
import math
import threading
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from adafilter_dist.models.inference.filter_table import FilterLayout, FilterTable
from adafilter_dist.models.inference.fold_batchnorm import BareConv
from adafilter_dist.models.ops.native import library


def can_compute(conv: BareConv, x: Tensor, table: FilterTable) -> bool:
    """Whether `selected_conv` computes this: float32 on a CPU, one group, plain, no gradient."""
    return (
        x.device.type == "cpu"
        and x.dtype == table.rows.dtype == torch.float32
        and conv.plain
        and conv.groups == 1
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and _library() is not None
    )


def selected_conv(
    conv: BareConv,
    x: Tensor,
    table: FilterTable,
    bits: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y (N, C, H', W') of x (N, C_in, H, W): channel c of image n tuned where bits[n, c].

    Then + residual, float32 and of the shape of y, and perhaps ReLU. bits bool (N, C). The first
    call lays the filters out anew, which are then held twice. Where `can_compute` says so.
    """
    compiled = _library()
    assert compiled is not None
    layout = table.layout(make_layout)
    height, width = conv.output_size(x)
    images, channels, *size = x.shape
    down, right = conv.padding
    padded_shape = (images, size[0] + 2 * down, size[1] + 2 * right, channels)
    padded = _padded_input.of(math.prod(padded_shape)) if down or right else None
    pixels, bits = x.permute(0, 2, 3, 1).contiguous(), bits.contiguous()
    more = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    y = torch.empty(images, height, width, bits.shape[1])
    if y.numel():
        tensors = (pixels, padded, layout.layouts, layout.bias, bits, more, y)
        compiled.selected_conv(
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            *pixels.shape,
            bits.shape[1],
            *conv.kernel,
            *(height, width),
            *conv.stride,
            *conv.dilation,
            *conv.padding,
            relu,
            torch.get_num_threads(),
        )
    return y.permute(0, 3, 1, 2)


def make_layout(rows: Tensor, bias: Tensor, pairs: Tensor) -> FilterLayout:
    """Filters as the kernel reads them: blocks, of each the frozen ones, then the tuned ones.

    rows (T, KH, KW, C_in), bias (T,), pairs int64 (2, C) as in `FilterTable`.
    """
    compiled = _library()
    assert compiled is not None
    wide, filters = int(compiled.block_of_filters()), pairs.shape[1]
    blocks = -(-filters // wide)
    both = rows.new_zeros(2, blocks * wide, rows[0].numel())
    both[:, :filters] = rows.flatten(1)[pairs]
    layouts = both.view(2, blocks, wide, -1).permute(1, 0, 3, 2).contiguous()
    return FilterLayout(layouts, bias[pairs])


class _PaddedInput(threading.local):
    """Memory for padded inputs, kept: to ask for it at each call takes longer than to fill it."""

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def of(self, floats: int) -> Tensor:
        """That many, or more, with anything in them; the same memory at each call of a thread."""
        if len(self._kept) < floats:
            self._kept = torch.empty(0)  # before the larger one is there
            self._kept = torch.empty(floats)
        return self._kept


_padded_input = _PaddedInput()


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had: other ways are used then."""
    compiled = library(Path(__file__).with_name("selected_cpu.c"))
    if compiled is None:
        return None
    arguments = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 15 + [ctypes.c_int] * 2
    compiled.selected_conv.argtypes = arguments
    compiled.selected_conv.restype = None
    return compiled
