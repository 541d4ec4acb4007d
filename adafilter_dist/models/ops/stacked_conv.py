"""Both convolutions of a gated layer as one, over stacked filters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def can_stack(conv: nn.Conv2d) -> bool:
    """Whether `stacked_conv` computes what `conv` does: a plain one of one group, zeros around."""
    plain = type(conv) is nn.Conv2d and not isinstance(conv.padding, str)
    return plain and conv.groups == 1 and conv.padding_mode == "zeros"


def stacked_conv(conv: nn.Conv2d, x: Tensor, frozen: Tensor, frozen_bias: Tensor | None) -> Tensor:
    """y (N, 2C, H', W') of x (N, C_in, H, W): by the conv's own filters, then by the frozen ones.

    x is read once. Backward computes one input gradient over the stacked filters and the weight
    gradient of the conv's own half only. `torch.autocast` is minded.
    """
    tensors = [x, conv.weight, frozen, conv.bias, frozen_bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = [None if each is None else each.to(dtype) for each in tensors]
    y: Tensor = _StackedConv.apply(*tensors, conv.stride, conv.padding, conv.dilation)
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
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        both = None if bias is None or frozen_bias is None else torch.cat((bias, frozen_bias))
        with torch.autocast(x.device.type, enabled=False):
            y = F.conv2d(x, torch.cat((weight, frozen)), both, stride, padding, dilation)
        ctx.save_for_backward(x, weight, frozen)
        ctx.shape = (list(stride), list(padding), list(dilation))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, frozen = ctx.saved_tensors
        need_x, need_weight, _, need_bias, *_ = ctx.needs_input_grad
        dx = dweight = dbias = None
        if need_x:
            dx = _backward(dy, x, torch.cat((weight, frozen)), ctx.shape, 0)
        if need_weight:
            dweight = _backward(dy[:, : len(weight)], x, weight, ctx.shape, 1)
        if need_bias:
            dbias = dy[:, : len(weight)].sum((0, 2, 3))
        return dx, dweight, None, dbias, None, None, None, None


def _backward(dy: Tensor, x: Tensor, weight: Tensor, shape: Any, which: int) -> Tensor:
    mask = [which == 0, which == 1, False]
    grads = torch.ops.aten.convolution_backward(dy, x, weight, None, *shape, False, [0, 0], 1, mask)
    return cast(Tensor, grads[which])
