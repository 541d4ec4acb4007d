"""A convolution that computes only the selected filters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def selected_filters(
    conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, selected: Tensor
) -> Tensor:
    """`conv` of x (N, C_in, H, W) by `weight` and `bias`: zero where `wanted` (C_out,) is False.

    Filters that are not wanted are not computed; their weights get gradients of zero, none of them
    a missing one, for which DistributedDataParallel would wait. One group only. On a GPU it waits
    for the device, to know how many filters there are.
    """
    count = int(selected.sum())
    if count == len(selected):
        return conv._conv_forward(x, weight, bias)
    rows = selected.nonzero().squeeze(1)
    some_weight, some_bias = weight[rows], None if bias is None else bias[rows]
    if count == 0:
        nothing = some_weight.sum() + (0 if some_bias is None else some_bias.sum())  # of no rows
        return _empty_output(conv, x, len(selected)) + nothing.to(x.dtype)
    y = conv._conv_forward(x, some_weight, some_bias)
    whole = _like(y, len(selected))
    return whole.index_copy(1, rows, y)


def _like(y: Tensor, channels: int) -> Tensor:
    shape = (y.shape[0], channels, *y.shape[2:])
    zeros = torch.zeros(shape, dtype=y.dtype, device=y.device)
    return zeros.contiguous(memory_format=torch.channels_last)


def _empty_output(conv: nn.Conv2d, x: Tensor, channels: int) -> Tensor:
    """Zeros of the shape that `conv` would give, from one of its filters on the meta device."""
    like = torch.empty_like(x, device="meta")
    one = torch.empty_like(conv.weight[:1], device="meta", dtype=x.dtype)
    y = conv._conv_forward(like, one, None)
    return _like(torch.empty(y.shape, dtype=x.dtype, device=x.device), channels)
