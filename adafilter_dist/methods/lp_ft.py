"""LP-FT: the head is fitted on the frozen features first, then everything is trained from it.

Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, ICLR
2022. Their head is scikit-learn's logistic regression on the features, its strength chosen on
validation data, then fine-tuning with a rate of its own grid (their repository
AnanyaKumar/transfer_learning, scripts/run_adaptation_experiments.py). Here the head is the one that
the report's linear probe measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adafilter_dist.methods.base import Start, StartData, TrainableModel
from adafilter_dist.methods.finetune import build_finetune, rebuild_finetune
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.backbone.linear_fit import fit_linear
from adafilter_dist.recipe.schema import Recipe


def build_lp_ft(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning, from a head that is fitted before the first step."""
    trainable = build_finetune(backbone, recipe)
    head = trainable.classifier

    def start(data: StartData) -> Start:
        fit = fit_linear(data.train, data.val, data.num_classes, data.device)
        weight, bias = fit.folded()
        chooser = "a tenth of the training pictures" if data.val is None else "the validation split"
        edge = ", at the edge of those tried" if fit.at_edge else ""
        return Start(
            {f"{head}.weight": weight, f"{head}.bias": bias},
            f"the head is fitted to {len(data.train.y):,} pictures with L2 {fit.strength:g}{edge}, "
            f"{fit.validation[fit.strength]:.1%} correct on {chooser}; all weights are trained "
            "from there",
        )

    trainable.start = start
    return trainable


def rebuild_lp_ft(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export."""
    return rebuild_finetune(module, head, config)
