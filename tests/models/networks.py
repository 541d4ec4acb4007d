"""Networks for the tests: real architectures, random weights, BatchNorms that do something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

CLASSES = 5
TORCHVISION = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "vgg16_bn",
]
# The first two keep the activation inside their BatchNorm, the second pads in its convolutions.
TIMM = ["timm/regnety_002", "timm/tf_efficientnet_lite0", "timm/resnet26"]


def architectures(quick: Sequence[str]) -> list[Any]:
    """Names to parametrise a test with: the quick ones at once, the others with the slow tests."""
    marks = dict.fromkeys((*TORCHVISION, *TIMM), pytest.mark.slow)
    # resnet50 with more filters, and with groups of them, which regnet has as well
    marks["wide_resnet50_2"] = marks["resnext50_32x4d"] = pytest.mark.long
    return [pytest.param(name, marks=() if name in quick else mark) for name, mark in marks.items()]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor of the state a random value that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) + 0.5

    def centred(like: Tensor) -> Tensor:
        return (uniform(like) - 1) * 12**0.5  # variance one

    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 100
            parameter.copy_(centred(parameter) * fan_in**-0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight))
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.copy_(centred(module.running_mean) * 0.3)
                module.running_var.copy_(uniform(module.running_var))
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.zero_()
    return model


def network(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """The architecture `name` with `CLASSES` classes and random state, in evaluation mode."""
    if name.startswith("timm/"):
        import timm

        module: nn.Module = timm.create_model(name.removeprefix("timm/"), num_classes=CLASSES)
    else:
        # Without the library's slow initialisation. RegNets compute while they are being built.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            module = models.get_model(name, num_classes=CLASSES)
            if name.startswith("vgg"):  # 120 million parameters that no gate touches
                module.classifier = nn.Linear(512 * 7 * 7, CLASSES)
        module.to_empty(device="cpu")
    return randomise(module.to(dtype), seed).eval()


def images(n: int = 3, size: int = 32, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Noise (n, 3, size, size) whose mean differs from picture to picture."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, size, size, generator=generator, dtype=dtype)
    return noise + torch.randn(n, 3, 1, 1, generator=generator, dtype=dtype)


class Pairs(nn.Module):
    """A small network: two pairs, a convolution without a BatchNorm, a classifier."""

    def __init__(self, forward: Callable[[Pairs, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, CLASSES)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        if self._forward is not None:
            return self._forward(self, x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.end(x)

    def end(self, x: Tensor) -> Tensor:
        """From the last pair's output to the logits."""
        logits: Tensor = self.fc(self.conv3(x).mean((2, 3)))
        return logits


def pairs(forward: Callable[[Pairs, Tensor], Tensor] | None = None) -> Pairs:
    """A `Pairs` in float64 with random state, in evaluation mode."""
    module = randomise(Pairs(forward).double()).eval()
    assert isinstance(module, Pairs)
    return module
