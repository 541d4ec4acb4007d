"""How large the gradient of the gate is beside that of the fine-tuned filters F."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating.gated_conv import GatedConvBN


class GateGradient:
    """Norm of the gate's gradient over that of F's, as the step's update gets them.

    Reads each gradient once, so it is for a step now and then. Of engines that keep whole gradients
    on every rank: DDP, and DeepSpeed's ZeRO-0; a loss scale cancels out.
    """

    def __init__(self, trainable: TrainableModel) -> None:
        gate = trainable.gates
        self._gate = [] if gate is None else list(gate.parameters())
        self._filters = [
            parameter
            for module in trainable.model.modules()
            if isinstance(module, GatedConvBN)
            for parameter in module.conv.parameters()
        ]

    def ratio(self) -> Tensor | None:
        """A 0-d tensor on the device, after the backward passes; None where there is no gradient.

        inf or NaN where F has none, as while only the gate is trained.
        """
        gate, filters = _norm(self._gate), _norm(self._filters)
        return None if gate is None or filters is None else gate / filters


def _norm(parameters: list[nn.Parameter]) -> Tensor | None:
    gradients = [one.grad for one in parameters if one.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
