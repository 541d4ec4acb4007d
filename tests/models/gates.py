"""Gated layers and networks whose two branches differ, and gates for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.recipe.sections.model import Gate


def gated(conv: nn.Conv2d, seed: int = 0, affine: bool = True) -> GatedConvBN:
    """A gated layer in evaluation mode, every tensor of it random and of `conv`'s dtype."""
    dtype = conv.weight.dtype
    shape = ("conv", conv.in_channels, conv.out_channels)
    drawn = torch.Generator().manual_seed(seed)
    gate = RecurrentGate([shape], Gate(hidden=4), generator=drawn).to(dtype)
    layer = GatedConvBN(conv, nn.BatchNorm2d(conv.out_channels, affine=affine).to(dtype), gate, 0)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=drawn, dtype=dtype)
                tensor.copy_(noise.square() + 0.5 if name.endswith("running_var") else noise)
    return layer.eval()


def unsettle(net: AdaFilterNet) -> None:
    """Make the tuned branch differ from the frozen one, as after training."""
    with torch.no_grad():
        for layer in net.gated_layers.values():
            layer.conv.weight.mul_(1.3)
            for bn, shift in ((layer.bn1, 0.2), (layer.bn2, -0.1)):
                bn.bias.add_(shift)
                assert bn.running_mean is not None and bn.running_var is not None
                bn.running_mean.add_(shift)
                bn.running_var.mul_(1 + shift)


def random_gates(constant_share: float = 0.0) -> Callable[[int, Tensor], Tensor]:
    """An override: bits that differ from image to image, but for a share of each layer's filters.

    The same images get the same bits at every call.
    """

    def override(index: int, gates: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        bits = torch.randint(0, 2, gates.shape, generator=generator).to(gates)
        constant = torch.rand(gates.shape[1], generator=generator) < constant_share
        return torch.where(constant, bits[:1], bits)

    return override
