"""Networks of which the first layers are computed once: the same bits, and fewer calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adafilter_dist.models.backbone.backbones import build_architecture
from adafilter_dist.models.backbone.kept_prefix import outputs_before, prefix_kept


class Dense(nn.Module):
    """Each layer sees the outputs of all before; one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3 * n, 3, 3, padding=1) for n in (1, 2, 3))
        self.twice = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for convolution in self.convolutions:
            seen.append(self.twice(convolution(torch.cat(seen, 1))))
        return self.head(torch.cat(seen, 1).mean((2, 3)))


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("network", "path", "counts"),
    [
        ("resnet18", "layer4.1.conv2", (1, 20)),
        ("resnet18", "layer2.0.conv1", (15, 20)),
        ("resnet18", "conv1", (20, 20)),
        ("mobilenet_v2", "features.18.0", (1, 52)),
        ("efficientnet_lite0", "_conv_head", (1, 49)),
        ("dense", "convolutions.2", (1, 3)),
    ],
)
def test_the_same_bits_while_a_filter_changes(
    network: str, path: str, counts: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = (Dense() if network == "dense" else build_architecture(network, 4)).eval()
    images = torch.randn(5, 3, 32, 32)
    convolution = model.get_submodule(path)
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        with prefix_kept(model, path, images):
            same = model(images)
            kept = convolution.weight[1].clone()
            convolution.weight[1] = 1
            without = model(images)
            convolution.weight[1] = kept
            with Convolutions() as short:
                again = model(images)
        with Convolutions() as whole:
            expected = model(images)
        convolution.weight[1] = 1
        expected_without = model(images)
    assert (short.count, whole.count) == counts
    assert torch.equal(same, expected) and torch.equal(again, expected)
    assert torch.equal(without, expected_without) and not torch.equal(without, expected)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_only_the_last_output_of_a_chain_is_in_memory() -> None:
    model = build_architecture("resnet18", 4).eval()
    images = torch.randn(3, 3, 32, 32)
    outputs = outputs_before(model, "layer4.0.conv1", images, ["layer3"])
    assert list(outputs) == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"]
    assert [name for name, output in outputs.items() if output is not None] == ["layer3"]
