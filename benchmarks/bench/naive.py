"""The opponent: an AdaFilter network as one would write it down, in eager PyTorch.

Every gated layer is two convolutions and two `nn.BatchNorm2d`, and the bit chooses by multiplying
and adding; both branches are computed at evaluation too. It shares nothing with the package's layer
but the recurrent gate.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.gating.gated_conv import GatedConvBN


class NaiveGatedConvBN(nn.Module):
    """y = g * BN1(F x) + (1 - g) * BN2(S x). x (N, C_in, H, W) -> y (N, C_out, H', W')."""

    def __init__(self, layer: GatedConvBN, gate: RecurrentGate) -> None:
        super().__init__()
        self.tuned = copy.deepcopy(layer.conv)
        self.frozen = copy.deepcopy(layer.conv).requires_grad_(False)
        with torch.no_grad():
            self.frozen.weight.copy_(layer.frozen_weight)
            if self.frozen.bias is not None and layer.frozen_bias is not None:
                self.frozen.bias.copy_(layer.frozen_bias)
        self.bn1 = plain_batchnorm(layer.bn1)
        self.bn2 = plain_batchnorm(layer.bn2)
        self.index = layer.index
        self._gate = (gate,)  # in a tuple: it belongs to the network, not to every layer

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        tuned, frozen = self.bn1(self.tuned(x)), self.bn2(self.frozen(x))
        g = self._gate[0](self.index, x)[:, :, None, None].to(tuned.dtype)
        y: Tensor = g * tuned + (1 - g) * frozen
        # As the network's own code does it, which hands this to its gated layers.
        if residual is not None:
            y = y.add_(residual)
        return y.relu_() if relu else y


class NaiveNet(nn.Module):
    """images (N, 3, H, W) -> logits (N, classes)."""

    def __init__(self, backbone: nn.Module, gate: RecurrentGate) -> None:
        super().__init__()
        self.backbone = backbone
        self.gate = gate

    def forward(self, images: Tensor) -> Tensor:
        self.gate.start()
        try:
            logits: Tensor = self.backbone(images)
        finally:
            self.gate.stop()
        return logits


def naive(net: AdaFilterNet) -> NaiveNet:
    """The same network with naive layers: a copy, with the same weights, gate and mode."""
    twin = copy.deepcopy(net)
    backbone, gate = twin.backbone, twin.gate
    for name in gate.names:
        layer = backbone.get_submodule(name)
        assert isinstance(layer, GatedConvBN)
        backbone.set_submodule(name, NaiveGatedConvBN(layer, gate).train(layer.training))
    for name, module in list(backbone.named_modules()):
        if type(module) is MicroBatchNorm2d:
            backbone.set_submodule(name, plain_batchnorm(module))
    network = NaiveNet(backbone, gate)
    network.training = net.training
    return network


def plain_batchnorm(source: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """torch's own layer with the state of `source`, which gathers statistics for a step."""
    own = nn.BatchNorm2d(
        source.num_features,
        source.eps,
        source.momentum,
        source.affine,
        source.track_running_stats,
        device=source.weight.device if source.affine else None,
        dtype=source.weight.dtype if source.affine else None,
    )
    own.load_state_dict(source.state_dict())
    for parameter, other in zip(own.parameters(), source.parameters(), strict=True):
        parameter.requires_grad_(other.requires_grad)
    return own.train(source.training)
