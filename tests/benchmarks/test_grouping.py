"""The profile's events end up in the parts of the network that they belong to."""

from __future__ import annotations

import copy

import torch
from bench.floors import FORWARD, GATE, INPUT, NORM, OTHER, UPDATE, WEIGHT
from bench.grouping import MARK, SplitGradients, part_of_event, seconds_by_part
from torch import nn

from adafilter_dist.models.gating.convert import convert
from tests.models.networks import Pairs, images

CPU = torch.device("cpu")
GATED = ["conv1", "conv2"]


def parts(net: nn.Module) -> dict[str, float]:
    """Of training steps of a small network on big enough pictures."""
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    x = images(4, 32, torch.float32)

    def step() -> None:
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()

    return seconds_by_part(step, net, GATED, device=CPU, times=2)


def test_a_step_is_shared_out_over_its_parts() -> None:
    source = Pairs()
    plain = parts(copy.deepcopy(source))
    ours = parts(convert(source, size=32))
    for part in (FORWARD, INPUT, WEIGHT, NORM, OTHER, UPDATE):
        assert plain[part] > 0 and ours[part] > 0, part
    assert plain[GATE] == 0 < ours[GATE]
    # Forward alone is an evaluation.
    net = convert(Pairs(), size=32).eval()
    with torch.no_grad():
        x = images(4, 32, torch.float32)
        forward = seconds_by_part(lambda: net(x), net, GATED, device=CPU, times=2)
    assert forward[INPUT] == forward[WEIGHT] == forward[UPDATE] == 0
    assert min(forward[FORWARD], forward[NORM], forward[GATE]) > 0


def test_products_over_stacked_filters_are_convolutions() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 64, 1, bias=False), nn.Conv2d(64, 64, 1, bias=False)
    norms = nn.BatchNorm2d(64), nn.BatchNorm2d(64)
    net = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.Flatten())
    converted = convert(net.append(nn.Linear(64 * 32 * 32, 2)), size=32).train()
    x = images(4, 32, torch.float32)

    def step() -> None:
        converted(x).sum().backward()

    found = seconds_by_part(step, converted, ["0", "3"], device=CPU, times=2)
    assert min(found[FORWARD], found[INPUT], found[WEIGHT], found[NORM]) > 0
    only = nn.Sequential(copy.deepcopy(first), copy.deepcopy(norms[0]), nn.Flatten())
    converted = convert(only.append(nn.Linear(64 * 32 * 32, 2)), size=32).train()
    found = seconds_by_part(step, converted, ["0"], device=CPU, times=2)
    assert found[INPUT] == 0 < found[WEIGHT], "pictures have no gradient"


def test_splitting_a_convolutions_backward_changes_no_gradient() -> None:
    net, x = Pairs().double(), images(2, 8).requires_grad_()
    wanted = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    with SplitGradients():
        found = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


def test_the_innermost_says_what_an_event_is() -> None:
    made = {7: GATE}
    assert part_of_event(MARK + GATE, 3, NORM, False, made) == GATE
    assert part_of_event("aten::convolution", 3, NORM, False, made) == FORWARD
    assert part_of_event("aten::convolution", 3, NORM, True, made) == INPUT
    assert part_of_event("aten::mul", 3, NORM, False, made) == NORM
    assert part_of_event("aten::relu_", 3, None, False, made) == OTHER
    node = "autograd::engine::evaluate_function: MulBackward0"
    assert part_of_event(node, 7, None, True, made) == GATE
