"""The gated layer with one BatchNorm behind the choice, not one for each kind of filter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.gating.gated_conv import GatedConvBN


class SharedNormConvBN(GatedConvBN):
    """y = BN(G * F x + (1 - G) * S x): an ablation of `GatedConvBN`, always of plain modules.

    The statistics are those of the chosen outputs, of all images together. In evaluation it is a
    layer whose two BatchNorms are the same, so that the networks for inference take it as it is.
    """

    def __init__(
        self, conv: nn.Conv2d, source: nn.BatchNorm2d, gate: RecurrentGate, index: int
    ) -> None:
        super().__init__(conv, source, gate, index, "all")
        del self.bn2
        self.batchnorm = "shared"

    @property
    def norms(self) -> tuple[MicroBatchNorm2d, MicroBatchNorm2d]:
        """Twice the same."""
        return self.bn1, self.bn1

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """The layer, and what followed it in the block's code: + residual, then ReLU."""
        gates = self.gates(x)
        tuned, frozen = self.conv(x), self._frozen_conv(x)
        out = self.bn1(torch.lerp(frozen, tuned, gates.to(tuned.dtype)[:, :, None, None]))
        if residual is not None:
            out = out + residual
        return out.relu_() if relu else out
