"""Networks as torch.export follows them: the same answers, for any number of pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist import convert, for_inference
from adafilter_dist.export.program import program_of
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.inference.compact import compact
from adafilter_dist.models.inference.exportable import ForExport, gate_logits
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import randomise


class Block(nn.Module):
    """Layers of one group and of several, a residual, a layer that is not gated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.bare = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.wide(x) + x).relu()
        x = self.bare(self.last(x)).relu()
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def network(decision: str) -> AdaFilterNet:
    gate = Gate(decision=decision, hidden=8, look_ahead=0.7, margin=0.5)
    net = convert(Block(), size=16, gate=gate)
    randomise(net, seed=1)
    if net.gate.picture is not None:  # pictures are divided
        width = len(net.gate.picture.feature_mean)
        generator = torch.Generator().manual_seed(2)
        net.gate.picture.decide({"weight": torch.randn(2, width, generator=generator)}, 0.5)
    return net.eval()


@pytest.mark.parametrize("form", ["exact", "fast", "compact"])
@pytest.mark.parametrize("decision", ["filter", "picture"])
def test_a_program_says_what_the_network_says(form: str, decision: str) -> None:
    net = network(decision)
    model: nn.Module = net
    if form == "fast":
        model = for_inference(net)
    elif form == "compact":
        constant = {name: torch.full((n,), -1) for name, n in (("stem.0", 8), ("last.0", 12))}
        constant["stem.0"][:3] = 1
        constant["last.0"][:] = torch.arange(12) % 2
        model = compact(net, {name: values.to(torch.int8) for name, values in constant.items()})
    program = program_of(ForExport(model, gates=True), torch.randn(2, 3, 16, 16)).module()
    generator = torch.Generator().manual_seed(3)
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16, generator=generator)
        with torch.no_grad():
            logits = model(images)
            gates = gate_logits(model, logits)
            own, own_gates = program(images)
        torch.testing.assert_close(own, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own_gates, gates, rtol=1e-4, atol=1e-5)
        assert gates.shape == (count, 16 if form == "compact" else 28)
        if count > 1:
            assert len({tuple(row) for row in (gates > 0).tolist()}) > 1


def test_pixels_are_normalised_inside() -> None:
    net, generator = network("filter"), torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    images = pixels.permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    program = program_of(ForExport(net, pixels=(mean, std)), pixels[:2]).module()
    with torch.no_grad():
        torch.testing.assert_close(program(pixels), net(images), rtol=1e-4, atol=1e-5)
