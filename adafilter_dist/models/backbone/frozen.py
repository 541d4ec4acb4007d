"""A network held still but for its classifier."""

from __future__ import annotations

from torch import Tensor, nn


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
