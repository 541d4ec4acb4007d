"""Where architectures and their published weights come from, one file a source.

Choosing and building one is in `models.backbone.backbones`.
"""

from __future__ import annotations

from adafilter_dist.models.backbone.zoo.base import WeightsFile, Zoo
from adafilter_dist.models.backbone.zoo.lite import EfficientNetLite
from adafilter_dist.models.backbone.zoo.small_resnet import SmallResNetZoo
from adafilter_dist.models.backbone.zoo.timm_zoo import TimmZoo
from adafilter_dist.models.backbone.zoo.torchvision_zoo import TorchvisionZoo

__all__ = ["WeightsFile", "Zoo", "zoo_of"]


def zoo_of(name: str) -> Zoo:
    """The source of the architecture `name`; UserError naming the nearest if nobody has it."""
    if name.startswith("timm/"):
        return TimmZoo(name)
    if name == EfficientNetLite.NAME:
        return EfficientNetLite(name)
    if name == SmallResNetZoo.NAME:
        return SmallResNetZoo(name)
    return TorchvisionZoo(name)
