"""BatchNorm that normalises a channel by the micro-batch or by running statistics, by a coin.

Kou, You, Long, Wang, Stochastic Normalization, NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.gating import micro_batches
from adafilter_dist.models.gating.batchnorm import (
    MicroBatchNorm2d,
    MicroBatchNormAct2d,
    with_hooks,
)


class StochNorm2d(MicroBatchNorm2d):
    """In training a channel takes the micro-batch's statistics with probability `p`, else running.

    x (N, C, H, W). Each micro-batch of a forward has coins of its own, C of them, from its own
    generator. Both branches share weight and bias. Running statistics are not differentiated, and
    move as those of `MicroBatchNorm2d` do: once a step, in all channels.
    """

    p = 0.5

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        if not self.training or self.frozen:
            return super().forward(x)
        rows = x.new_empty(
            micro_batches.current.count, self.num_features, dtype=self.step_sums.dtype
        )
        # The coins (micro-batches, C) go to the parts of x as gates would.
        return super().forward(x, micro_batches.draw(torch.rand, rows) < self.p)

    def _micro_batch(self, x: Tensor, gates: Tensor | None) -> Tensor:
        by_batch = super()._micro_batch(x, None)
        if self.running_mean is None or gates is None:
            return by_batch
        by_running = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return torch.where(gates.view(1, -1, 1, 1), by_batch, by_running)


class StochNormAct2d(MicroBatchNormAct2d, StochNorm2d):
    """`StochNorm2d` followed by the dropping and activation that timm keeps in its BN."""


def replace_by_stochnorm(model: nn.Module, p: float) -> nn.Module:
    """Make every `MicroBatchNorm2d` of `model` that is trained (in place) one with coins."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MicroBatchNorm2d) and not child.frozen:
                setattr(module, name, _stochastic(child, p))
    return model


def _stochastic(source: MicroBatchNorm2d, p: float) -> nn.Module:
    copy: StochNorm2d
    if isinstance(source, MicroBatchNormAct2d):
        activated = StochNormAct2d.from_batchnorm(source)
        assert isinstance(activated, StochNormAct2d)
        activated.drop, activated.act = source.drop, source.act
        copy = activated
    else:
        plain = StochNorm2d.from_batchnorm(source)
        assert isinstance(plain, StochNorm2d)
        copy = plain
    copy.p = p
    return with_hooks(copy, source)
