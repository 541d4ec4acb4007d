"""The plainest way to compute a gated layer at evaluation: each image by its own chosen filters.

Slow, and meant to be read: faster ways are tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from adafilter_dist.models.gating.gated_conv import GatedConvBN


def selected_only(layer: GatedConvBN, x: Tensor, gates: Tensor) -> Tensor:
    """y (N, C_out, H', W') of x (N, C_in, H, W) for gates (N, C_out) of 0 and 1.

    Only the selected filter of each pair is computed, with the running statistics of its BN.
    """
    return torch.cat(
        [_one(layer, image[None], chosen.bool()) for image, chosen in zip(x, gates, strict=True)]
    )


def _one(layer: GatedConvBN, image: Tensor, tuned: Tensor) -> Tensor:
    filters = {"weight": _choose(tuned, layer.conv.weight, layer.frozen_weight)}
    if layer.conv.bias is not None and layer.frozen_bias is not None:
        filters["bias"] = _choose(tuned, layer.conv.bias, layer.frozen_bias)
    y = functional_call(layer.conv, filters, image)
    first, second = layer.bn1, layer.bn2
    return F.batch_norm(
        y,
        _choose(tuned, _statistic(first, "running_mean"), _statistic(second, "running_mean")),
        _choose(tuned, _statistic(first, "running_var"), _statistic(second, "running_var")),
        _choose(tuned, first.weight, second.weight) if first.affine else None,
        _choose(tuned, first.bias, second.bias) if first.affine else None,
        training=False,
        eps=first.eps,
    )


def _choose(tuned: Tensor, own: Tensor, frozen: Tensor) -> Tensor:
    return torch.where(tuned.view(-1, *[1] * (own.ndim - 1)), own, frozen)


def _statistic(batchnorm: nn.BatchNorm2d, name: str) -> Tensor:
    value = getattr(batchnorm, name)
    assert isinstance(value, Tensor)
    return value
