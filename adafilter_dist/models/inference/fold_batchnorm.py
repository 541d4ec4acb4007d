"""A gated layer at evaluation as two sets of plain filters: each BatchNorm folded into its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.gating.gated_conv import GatedConvBN


@dataclass(frozen=True)
class Folded:
    """weight (2, C_out, KH, KW, C_in / groups) and bias (2, C_out): [0] frozen, [1] tuned."""

    weight: Tensor
    bias: Tensor


def fold(layer: GatedConvBN) -> Folded:
    """BN2 folded into the frozen filters and BN1 into the tuned ones, with running statistics.

    Computed in float64 and rounded once to the filters' dtype. The layer is left as it is.
    """
    conv = layer.conv
    norm_of_tuned, norm_of_frozen = layer.norms
    frozen = _fold(layer.frozen_weight, layer.frozen_bias, norm_of_frozen)
    tuned = _fold(conv.weight, conv.bias, norm_of_tuned)
    weight, bias = (torch.stack(pair) for pair in zip(frozen, tuned, strict=True))
    rows = weight.permute(0, 1, 3, 4, 2).contiguous()
    return Folded(rows.to(conv.weight), bias.to(conv.weight))


def _fold(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    # On the CPU, because some accelerators have no float64.
    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64)

    assert norm.running_mean is not None and norm.running_var is not None
    scale = (exact(norm.running_var) + norm.eps).rsqrt()
    shift = -exact(norm.running_mean)
    if bias is not None:
        shift = shift + exact(bias)
    if norm.affine:
        scale = scale * exact(norm.weight)
        return exact(weight) * scale[:, None, None, None], shift * scale + exact(norm.bias)
    return exact(weight) * scale[:, None, None, None], shift * scale


class BareConv(nn.Module):
    """A convolution that is handed its filters at each call; it holds none itself.

    x (N, C_in, H, W), weight (R, C_in / groups, KH, KW), bias (R,) -> (N, R, H', W'). ``plain``: it
    is torch's own, with zeros for padding, as many on both sides, so that kernels can do it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.groups = conv.groups
        self.kernel = (conv.kernel_size[0], conv.kernel_size[1])
        self.stride = (conv.stride[0], conv.stride[1])
        self.dilation = (conv.dilation[0], conv.dilation[1])
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        self.padding = (top, left)
        self.plain = (
            type(conv) is nn.Conv2d
            and conv.padding_mode == "zeros"
            and (left, top) == (right, bottom)
        )
        self.shell: nn.Module | None = None if self.plain else _emptied(conv)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output for x, where ``plain``."""
        spans = zip(x.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True)
        height, width = ((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, p, d, k, t in spans)
        return height, width

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        shell = self.shell
        if shell is None:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        _hand(shell, weight, bias)
        try:
            y: Tensor = shell(x)
        finally:
            _hand(shell, None, None)
        return y


def _emptied(conv: nn.Conv2d) -> nn.Module:
    """A copy without filters; weight and bias become attributes that are set at each call."""
    shell = copy.deepcopy(conv)
    for name in ("weight", "bias"):
        del shell._parameters[name]
    _hand(shell, None, None)
    return shell


def _hand(shell: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    # Past nn.Module, which would file them as its own.
    shell.__dict__.update(weight=weight, bias=bias)


def foldable(conv: nn.Conv2d) -> bool:
    """Whether filter c, linearly and alone, makes output channel c, so that a BatchNorm folds in.

    True for torch's own Conv2d. A subclass is tried out on noise, in float64: one that only pads
    (timm's Conv2dSame) passes, one that standardises its filters first (StdConv2d) does not.
    """
    if type(conv) is nn.Conv2d:
        return True
    bare = BareConv(conv)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    filters = conv.out_channels
    extent = (d * (k - 1) + 1 for d, k in zip(bare.dilation, bare.kernel, strict=True))
    x = noise(1, conv.in_channels, *(side + 3 for side in extent))
    weights, biases = noise(2, *conv.weight.shape), noise(2, filters)
    scale = noise(filters)
    sum_of_filters = weights[0] + weights[1] * scale[:, None, None, None]
    try:
        first, second = (bare(x, w, b) for w, b in zip(weights, biases, strict=True))
        together = bare(x, sum_of_filters, biases[0] + biases[1] * scale)
        stacked = bare(x, weights.flatten(0, 1), biases.flatten()) if bare.groups == 1 else None
    except (RuntimeError, TypeError, ValueError):
        return False
    wanted = first + second * scale[:, None, None]
    if together.shape != wanted.shape or not torch.allclose(together, wanted, 1e-9, 1e-9):
        return False
    both = torch.cat((first, second), 1)
    return stacked is None or torch.allclose(stacked, both, 1e-9, 1e-9)
