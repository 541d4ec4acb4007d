"""A linear head on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adafilter_dist.methods.base import TrainableModel, without_gates
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.backbone.frozen import LinearProbeNet
from adafilter_dist.recipe.schema import Recipe


def build_linear_probe(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Freeze all but the classifier."""
    model = LinearProbeNet(backbone.module, backbone.head)
    return without_gates(model, backbone, recipe, f"backbone.{backbone.head}")


def rebuild_linear_probe(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export."""
    return LinearProbeNet(module, head)
