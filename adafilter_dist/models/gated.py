"""The gated layer: fine-tuned and frozen filters, a BatchNorm for each, a bit to choose."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adafilter_dist.models.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gate import RecurrentGate


class GatedConvBN(nn.Module):
    """y = G * BN1(F x) + (1 - G) * BN2(S x), with G one bit per image and filter.

    F is `conv` (trained), S its pre-trained twin held in buffers, so that no optimizer and no
    weight decay can reach it. x (N, C_in, H, W) -> y (N, C_out, H', W').
    """

    frozen_weight: Tensor
    frozen_bias: Tensor | None

    def __init__(
        self, conv: nn.Conv2d, batchnorm: nn.BatchNorm2d, gate: RecurrentGate, index: int
    ) -> None:
        super().__init__()
        self.conv = conv
        for parameter in conv.parameters():
            parameter.requires_grad_(True)
        self.register_buffer("frozen_weight", conv.weight.detach().clone())
        bias = None if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("frozen_bias", bias)
        self.bn1 = MicroBatchNorm2d.from_batchnorm(batchnorm)
        self.bn2 = MicroBatchNorm2d.from_batchnorm(batchnorm)
        self.index = index
        # In a tuple, so that the shared gate does not become a submodule of every layer.
        self._gate = (gate,)

    def gates(self, x: Tensor) -> Tensor:
        """The next step of the shared gate: (N, C_out), in the gate's own dtype."""
        gates: Tensor = self._gate[0](self.index, x)
        return gates

    def tuned(self, x: Tensor) -> Tensor:
        """BN1(F x)."""
        y: Tensor = self.bn1(self.conv(x))
        return y

    def frozen(self, x: Tensor) -> Tensor:
        """BN2(S x)."""
        if type(self.conv) is nn.Conv2d:
            y = self.conv._conv_forward(x, self.frozen_weight, self.frozen_bias)
        else:  # a subclass may pad or standardise its filters first
            y = functional_call(_Unhooked(self.conv), self._frozen_state(), x)
        z: Tensor = self.bn2(y)
        return z

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        tuned, frozen = self.tuned(x), self.frozen(x)
        # lerp is exact at 0 and 1 and where both branches agree; fractions are used in ablations.
        return torch.lerp(frozen, tuned, gates.to(tuned.dtype)[:, :, None, None])

    def _frozen_state(self) -> dict[str, Tensor]:
        state = {"conv.weight": self.frozen_weight}
        if self.frozen_bias is not None:
            state["conv.bias"] = self.frozen_bias
        return state


class _Unhooked(nn.Module):
    """A convolution without its hooks: under ZeRO-3 these fetch its own weights, not the twin's."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.forward(x)
