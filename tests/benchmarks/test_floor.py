"""FLOPs and bytes of networks, against counts by hand and published ones."""

from __future__ import annotations

import math

import pytest
import torch
from bench.floors import FORWARD, GATE, INPUT, NORM, UPDATE, by_kind, infer_passes, train_passes
from bench.peaks import Machine, measure_machine
from bench.shapes import Conv, Shapes, shapes_of
from torch import nn
from torchvision import models

from tests.models.networks import Pairs

ARITHMETIC = Machine(flops=1.0, bandwidth=math.inf)
TRAFFIC = Machine(flops=math.inf, bandwidth=1.0)
MIDDLE = Conv("middle", 2, 16, 16, 49, 49, 9, 1, trained_input=True, gated=True)


def test_a_convolution_by_hand() -> None:
    # 10 px, stride 2, dilation 2 and padding 2: (10 + 4 - 5) // 2 + 1 = 5 px.
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4, bias=False)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), conv)
    first, second = shapes_of(net, 3, 10).convs
    assert second.output_pixels == 5 * 5
    assert second.macs == 3 * (5 * 5) * 12 * (3 * 3 * 2)  # each filter sees 8 / 4 channels
    assert (second.inputs, second.outputs) == (3 * 8 * 100, 3 * 12 * 25)
    assert second.weights == conv.weight.numel() == 12 * 2 * 9
    assert (first.trained_input, second.trained_input) == (False, True)


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet50", 4.09), ("mobilenet_v3_large", 0.22), ("vgg16_bn", 15.47)],
)
def test_the_multiplications_of_known_networks(name: str, published: float) -> None:
    with torch.device("meta"):
        net = models.get_model(name)
    assert shapes_of(net, 1, 224).macs / 1e9 == pytest.approx(published, abs=0.01)


def test_residuals_and_what_else_moves_data() -> None:
    with torch.device("meta"):
        found = shapes_of(models.resnet18(), 2, 64)
    assert len(found.residuals) == 8
    assert found.residuals[0] == 2 * 64 * 16 * 16
    # Max pooling and the mean over pixels; activations cost nothing.
    assert found.others == [(2 * 64 * 32 * 32, 2 * 64 * 16 * 16), (2 * 512 * 2 * 2, 2 * 512)]
    assert [(one.batch, one.c_in, one.c_out) for one in found.linears] == [(2, 512, 1000)]
    assert found.parameters == sum(p.numel() for p in models.resnet18().parameters())


def test_only_batchnorms_behind_gated_convolutions_are_gated() -> None:
    net = Pairs()
    found = shapes_of(net, 2, 8, [("conv1", "bn1")])
    assert [(conv.name, conv.gated) for conv in found.convs] == [
        ("conv1", True),
        ("conv2", False),
        ("conv3", False),
    ]
    assert found.norms == [2 * 4 * 8 * 8]
    assert len(shapes_of(net, 2, 8).norms) == 2


def flops(shapes: Shapes, kinds: set[str], hidden: int | None) -> float:
    return sum(one.flops for one in train_passes(shapes, 4, hidden) if one.kind in kinds)


def test_arithmetic_alone_is_five_thirds() -> None:
    shapes = Shapes(convs=[MIDDLE])
    plain = by_kind(train_passes(shapes, 4), ARITHMETIC)
    ours = by_kind(train_passes(shapes, 4, 8), ARITHMETIC)
    gate = ours.pop(GATE)
    assert sum(ours.values()) / sum(plain.values()) == pytest.approx(5 / 3)
    assert 0 < gate < 0.1 * sum(plain.values())
    assert plain[FORWARD] == 2 * 2 * 49 * 16 * 16 * 9


def test_the_first_layer_has_no_input_gradient() -> None:
    first = Conv("first", 2, 16, 16, 49, 49, 9, 1, trained_input=False, gated=True)
    plain = by_kind(train_passes(Shapes(convs=[first]), 4), ARITHMETIC)
    ours = by_kind(train_passes(Shapes(convs=[first]), 4, 8), ARITHMETIC)
    assert INPUT not in plain and INPUT not in ours
    assert (sum(ours.values()) - ours[GATE]) / sum(plain.values()) == pytest.approx(3 / 2)


def test_batchnorm_takes_ten_passes_and_gated_fifteen() -> None:
    shapes, y = Shapes(convs=[MIDDLE]), 2 * 16 * 49
    for element in (4, 2):
        assert by_kind(train_passes(shapes, element), TRAFFIC)[NORM] == 10 * y * element
        assert by_kind(train_passes(shapes, element, 8), TRAFFIC)[NORM] == 15 * y * element
    # One that no gate covers costs the same with both.
    alone = Shapes(norms=[100])
    for hidden in (None, 8):
        assert by_kind(train_passes(alone, 4, hidden), TRAFFIC)[NORM] == 10 * 100 * 4


def test_selected_filters_cost_the_plain_arithmetic_and_one_more_read_of_filters() -> None:
    shapes = Shapes(convs=[MIDDLE])
    plain, ours = (by_kind(infer_passes(shapes, 4, hidden), ARITHMETIC) for hidden in (None, 8))
    assert ours[FORWARD] == plain[FORWARD] == sum(plain.values())
    plain, ours = (by_kind(infer_passes(shapes, 4, hidden), TRAFFIC) for hidden in (None, 8))
    assert ours[FORWARD] - plain[FORWARD] == MIDDLE.weights * 4
    assert NORM not in ours


def test_a_pass_takes_the_larger_of_its_two_times() -> None:
    shapes = Shapes(convs=[MIDDLE])
    both = by_kind(infer_passes(shapes, 4), Machine(1e3, 1.0))[FORWARD]
    assert both == max(2 * MIDDLE.macs / 1e3, 4 * (2 * MIDDLE.inputs + MIDDLE.weights))


def test_the_optimizer_moves_the_gate_and_the_second_batchnorm_too() -> None:
    with torch.device("meta"):
        source = models.resnet18()
    gated = [("conv1", "bn1"), ("layer1.0.conv1", "layer1.0.bn1")]
    shapes = shapes_of(source, 2, 64, gated)
    plain = by_kind(train_passes(shapes, 4), TRAFFIC)[UPDATE]
    ours = by_kind(train_passes(shapes, 4, 8), TRAFFIC)[UPDATE]
    gate = (3 * 8 + 8 + 8 * 64 + 64) + (64 * 8 + 8 + 8 * 64 + 64) + (2 * 4 * 8 * 8 + 2 * 4 * 8)
    assert plain == 5 * 4 * shapes.parameters
    assert ours - plain == 5 * 4 * (gate + 2 * 2 * 64)


def test_the_machine_is_measured() -> None:
    found = measure_machine(torch.device("cpu"), torch.float32, scale=0.05)
    assert 1e8 < found.flops < 1e15
    assert 1e8 < found.bandwidth < 1e14
    assert found.best(Machine(1e20, 1.0)) == Machine(1e20, found.bandwidth)
