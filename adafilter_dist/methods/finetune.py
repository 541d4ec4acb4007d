"""Plain fine-tuning: every weight is trained, but what model.ungated=freeze holds still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adafilter_dist.methods.base import TrainableModel, without_gates
from adafilter_dist.methods.trained_layers import restricted
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.recipe.schema import Recipe


def build_finetune(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """The backbone itself, its BatchNorms made ones that move once a step."""
    model = restricted(backbone, recipe)
    return without_gates(model, backbone, recipe, backbone.head)


def rebuild_finetune(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export."""
    return replace_batchnorm(module)
