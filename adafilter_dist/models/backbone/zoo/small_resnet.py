"""A residual network of nine convolutions for 28 px, with weights that come with this package.

Small enough for experiments of seconds on a CPU. `tools/pretrain_small_resnet.py` makes the
weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor, nn

from adafilter_dist.errors import UserError, nearest
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.backbone.zoo.base import WeightsFile, Zoo

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
METADATA_KEY = "network"
"""Of the weights files: its value is `Metadata` as JSON."""

_SHA256 = {
    "FASHION_MNIST": "98a397fb3f1d476af59b021e07ad9f466d4f7f6d31aff19a9d84fed783a72547",
    "FASHION_MNIST_FIVE": "acf0a0e73cedf64ccb78032b8fe0f041c8213a42d18c018c0e954165f4025b85",
}
_DEFAULT = "FASHION_MNIST"


@dataclass(frozen=True)
class Metadata:
    """What a weights file says of itself: normalisation (0..1 units), side in px, classes."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    classes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Metadata:
        """From the header of a weights file."""
        with safetensors.safe_open(path, "pt") as file:
            values: Mapping[str, Any] = json.loads(file.metadata()[METADATA_KEY])
        return cls(
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            size=values["size"],
            classes=tuple(values["classes"]),
        )


def weights_path(name: str) -> Path:
    """The file of published weights."""
    return WEIGHTS_FOLDER / f"small_resnet-{name.lower()}.safetensors"


class ConvNorm(nn.Sequential):
    """A convolution without bias, padded to keep the size, and its BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu()) + self.shortcut(x)
        return out.relu()


class SmallResNet(nn.Module):
    """Images (N, 3, 28, 28) -> logits (N, classes); widths 16, 32, 64; 77 thousand parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.blocks(self.stem(images).relu())).flatten(1)
        logits: Tensor = self.head(features)
        return logits


class SmallResNetZoo(Zoo):
    """The network `small_resnet`; its weights are files of this package."""

    NAME = "small_resnet"

    def build(self, size: int) -> nn.Module:
        return SmallResNet()

    def preprocess(self, weights: str | None) -> Preprocess:
        path = self.locate(weights or "DEFAULT").path
        if not path.is_file():
            self.download(weights or "DEFAULT")
        metadata = Metadata.read(path)
        return Preprocess(metadata.mean, metadata.std, "bilinear", metadata.size, metadata.size)

    def locate(self, weights: str) -> WeightsFile:
        name = _DEFAULT if weights == "DEFAULT" else weights
        if name not in _SHA256:
            raise UserError(
                f"model.weights={weights} is unknown for {self.name}{nearest(weights, _SHA256)}; "
                f"allowed: {', '.join(['DEFAULT', *_SHA256])}, a local .safetensors or .pth file, "
                "or null for random weights"
            )
        return WeightsFile(weights_path(name), f"{self.name} {name}", _SHA256[name])

    def classes(self, weights: str) -> Sequence[str] | None:
        return Metadata.read(self.locate(weights).path).classes

    def download(self, weights: str) -> None:
        path = self.locate(weights).path
        raise UserError(f"{path} is missing from this package; install adafilter-dist again")
