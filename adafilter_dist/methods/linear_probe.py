"""A linear head on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from adafilter_dist.methods.base import TrainableModel, without_gates
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.recipe.schema import Recipe


class LinearProbeNet(nn.Module):
    """Only the nn.Linear at path `head` of `backbone` is trained; all else stays in evaluation.

    images (N, 3, H, W) -> logits (N, classes).
    """

    def __init__(self, backbone: nn.Module, head: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        backbone.requires_grad_(False)
        backbone.get_submodule(head).requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> LinearProbeNet:
        """Without effect on BatchNorm and dropout of the backbone, which stay in evaluation."""
        super().train(mode)
        self.backbone.eval()
        self.backbone.get_submodule(self.head).train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(images)
        return logits


def build_linear_probe(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Freeze all but the classifier."""
    model = LinearProbeNet(backbone.module, backbone.head)
    return without_gates(model, backbone, recipe, f"backbone.{backbone.head}")


def rebuild_linear_probe(module: nn.Module, head: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of an export."""
    return LinearProbeNet(module, head)
