"""Both convolutions of a gated layer as one, over stacked filters."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adafilter_dist.models.ops import device_kind
from adafilter_dist.models.ops.operators import operator
from adafilter_dist.models.ops.passes_reference import cast


def can_stack(conv: nn.Conv2d) -> bool:
    """Whether `stacked_conv` can replace `conv`: torch's own, one group, zero padding."""
    plain = type(conv) is nn.Conv2d and not isinstance(conv.padding, str)
    return plain and conv.groups == 1 and conv.padding_mode == "zeros"


def stacking_is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether one stacked convolution is faster than two for this x, given `can_stack`.

    On a CPU that is so where both are one matrix product. As a convolution the weight gradient
    needs a copy of half of the output's gradient, and two are as fast as one.
    """
    if device_kind.on_gpu(x):
        return True
    wide = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return wide and _multiplies(x, conv.weight, conv.stride, conv.padding)


@functools.cache
def _slow_products() -> bool:
    """Whether MKL multiplies float32 at half the rate of oneDNN's convolutions here.

    So on CPUs that are not Intel's, where MKL leaves AVX-512 alone. A question of the hardware, not
    a measurement: the same machine has the same bits.
    """
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    vendor = next((line for line in text.splitlines() if line.startswith("vendor_id")), "")
    return vendor != "" and "GenuineIntel" not in vendor


def _multiplies(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> bool:
    """Whether a CPU computes this convolution of x as a matrix product."""
    if device_kind.on_gpu(x) or not _is_product(weight, stride, padding):
        return False
    return x.dtype == torch.float64 or not _slow_products()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which `stacked_conv` computes, given x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def stacked_conv(
    conv: nn.Conv2d,
    x: Tensor,
    frozen: Tensor,
    frozen_bias: Tensor | None,
    filters: Tensor | None = None,
) -> Tensor:
    """y (N, 2C, H', W') of x (N, C_in, H, W): by the conv's own filters, then by the frozen ones.

    x is read once. Backward computes one input gradient over the stacked filters and the weight
    gradient of the conv's own half only. `torch.autocast` is minded. `filters` are both kinds,
    stacked, in `compute_dtype`; they are joined here where there are none.
    """
    tensors = [x, conv.weight, frozen, conv.bias, frozen_bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = compute_dtype(x)
        joined = (conv.weight, frozen) if filters is not None else ()
        tensors = [
            each if each is None or any(each is one for one in joined) else each.to(dtype)
            for each in tensors
        ]
    y: Tensor = _StackedConv.apply(*tensors, filters, conv.stride, conv.padding, conv.dilation)
    return y


class _StackedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        frozen: Tensor,
        bias: Tensor | None,
        frozen_bias: Tensor | None,
        filters: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        both = None if bias is None or frozen_bias is None else torch.cat((bias, frozen_bias))
        if filters is None:
            filters = torch.cat((weight, frozen))
        ctx.shape = (list(stride), list(padding), list(dilation))
        ctx.product = _multiplies(x, weight, stride, padding)
        # A GPU keeps the stacked filters, which are small beside its activations: one operation
        # less in backward. A CPU joins them again.
        again = None if device_kind.on_gpu(x) else frozen
        ctx.save_for_backward(x, weight, again, filters if again is None else None)
        if ctx.product:
            return _pixels(F.linear(_rows(x), filters.flatten(1), both), x)
        if not torch.is_autocast_enabled(x.device.type):
            return F.conv2d(x, filters, both, stride, padding, dilation)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, filters, both, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, frozen, filters = ctx.saved_tensors
        need_x, need_weight, _, need_bias, *_ = ctx.needs_input_grad
        if filters is None:
            filters = torch.cat((weight, frozen)) if need_x else weight
        # In one operation on a GPU, where each takes the host as long as the GPU.
        in_one = device_kind.on_gpu(x) and not torch.compiler.is_compiling()
        gradients = conv_gradients if in_one else _gradients
        stride, padding, dilation = ctx.shape
        wanted = [need_x, need_weight, need_bias]
        grads = iter(gradients(dy, x, weight, filters, stride, padding, dilation, wanted))
        dx = next(grads) if need_x else None
        dweight = next(grads) if need_weight else None
        dbias = next(grads) if need_bias else None
        return dx, dweight, None, dbias, None, None, None, None, None


def _gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    filters: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    """Those that are wanted of x, `weight` (C, C_in, kh, kw) and its bias (C,).

    The first C channels of dy are those of `weight`.
    """
    shape = (stride, padding, dilation)
    own = dy[:, : len(weight)]
    results = []
    multiplies = _multiplies(x, weight, stride, padding)
    if wanted[0] and multiplies:
        results.append(_pixels(_rows(dy) @ filters.flatten(1), x))
    elif wanted[0]:
        results.append(_backward(dy, x, filters, shape, 0))
    if wanted[1]:
        # A matrix product takes rows that lie apart as they are. cuDNN would copy them first, as it
        # does for other kernels: their half of dy, read and written once more. So does oneDNN.
        if multiplies or (device_kind.on_gpu(x) and _is_product(weight, stride, padding)):
            dweight = (_rows(own).t() @ _rows(x)).as_strided(weight.shape, weight.stride())
        else:
            like = weight if weight.dtype == x.dtype else filters[: len(weight)]
            dweight = _backward(own, x, like, shape, 1)
            if weight.shape[2:] == (1, 1):  # of its two names for one layout, the weight's
                dweight = dweight.as_strided(weight.shape, weight.stride())
        results.append(cast(dweight, weight.dtype))
    if wanted[2]:
        results.append(own.sum((0, 2, 3)))
    return results


conv_gradients = operator("stackedconv_gradients", _gradients)


def _is_product(weight: Tensor, stride: Any, padding: Any) -> bool:
    """Whether every pixel is multiplied on its own, by a matrix."""
    return (*weight.shape[2:], *stride, *padding) == (1, 1, 1, 1, 0, 0)


def _rows(y: Tensor) -> Tensor:
    """y (N, C, H, W), a pixel a row: a view of what is channels-last, or half of that."""
    return y.permute(0, 2, 3, 1).flatten(0, 2)


def _pixels(rows: Tensor, like: Tensor) -> Tensor:
    images, _, height, width = like.shape
    return rows.unflatten(0, (images, height, width)).permute(0, 3, 1, 2)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, shape: Any, which: int) -> Tensor:
    mask = [which == 0, which == 1, False]
    grads = torch.ops.aten.convolution_backward(dy, x, weight, None, *shape, False, [0, 0], 1, mask)
    grad: Tensor = grads[which]
    return grad
