"""SPD: layers that move further from their start, against their gradient, are drawn back.

Tian, Huang, Kira, Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models, NeurIPS 2024
(selective projection decay). For each tensor of weights, w before the update, w' behind it, w0 at
the start of the run, g its gradient:

    if g . (w - w0) > 0:  w'' = w' - strength * r * (w' - w0),
                          r = (||w' - w0|| - ||w - w0||) / ||w' - w0||, between 0 and 1.

Otherwise w'' = w'. With strength 1 (our default) w'' is no further from w0 than w was. This is
adamSPD.py of the authors (GT-RIPL/Selective-Projection-Decay), around Adam there, with this
strength in the place of its weight decay, of which the default is 0: none at all. Here the update
is that of optim.name, SGD or AdamW, whose own decay is optim.weight_decay (0 in the authors' code),
and g is clipped where train.clip_norm says so. As there, every trained tensor has a w0: a new
head's is what it was drawn as.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adafilter_dist.methods.base import TrainableModel, UpdateRule
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.methods.start_weights import StartWeights
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import SPD


class ProjectionDecay(UpdateRule):
    """The rule above for `parameters`, whose w0 are those of `start`, in the same order."""

    def __init__(
        self, parameters: list[nn.Parameter], start: StartWeights, strength: float
    ) -> None:
        self._parameters: list[Tensor] = list(parameters)
        self._start = start
        self._strength = strength
        self._against = torch.empty(0, dtype=torch.bool)
        self._distances = torch.empty(0)

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep which gradients point away from w0, and how far from it each tensor is."""
        away = self._away()
        products = [
            (parameter.grad * offset).sum() if parameter.grad is not None else offset.new_zeros(())
            for parameter, offset in zip(self._parameters, away, strict=True)
        ]
        self._against = torch.stack(products) > 0
        self._distances = torch.stack(torch._foreach_norm(away))

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Draw back the tensors that the condition names."""
        away = self._away()
        distances = torch.stack(torch._foreach_norm(away))
        ratios = ((distances - self._distances) / distances).clamp(0, 1)
        # Where nothing has moved from w0 the ratio is no number, and there is nothing to draw.
        drawn = self._against & (distances > 0)
        shares = torch.where(drawn, self._strength * ratios, torch.zeros_like(ratios))
        torch._foreach_mul_(away, list(shares.unbind()))
        torch._foreach_sub_(self._parameters, away)

    def _away(self) -> list[Tensor]:
        """w - w0 of each tensor."""
        return list(torch._foreach_sub(self._parameters, self._start.values()))


def build_spd(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning with the rule around its updates; engines refuse it under ZeRO 1 to 3."""
    method = recipe.method
    assert isinstance(method, SPD)
    trainable = build_finetune(backbone, recipe)
    trained = [parameter for group in trainable.groups for parameter in group["params"]]
    start = StartWeights(trained)
    trainable.keep_beside("start_weights", start)
    trainable.rule = ProjectionDecay(trained, start, method.strength)
    return trainable
