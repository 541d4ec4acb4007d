"""Modules that draw random numbers in a training forward are found by what they do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.random_modules import find_random_modules
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import network, pairs


class Hidden(nn.Module):
    """Drops without a module for it, as some networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.1, self.training)


def test_each_is_named_once_where_it_draws() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5))
    model = nn.Sequential(inner, StochasticDepth(0.2, "row"), nn.BatchNorm2d(3), Hidden())
    assert find_random_modules(model, 8) == ["0.1", "1", "3"]


def test_what_never_draws_is_not_named() -> None:
    model = nn.Sequential(nn.Dropout(0.0), StochasticDepth(0.0, "row"), nn.Conv2d(3, 3, 1))
    assert find_random_modules(model, 8) == []


def test_a_gate_with_noise_has_generators_for_it() -> None:
    net = convert(pairs(), size=16, gate=Gate(decision="filter", estimator="gumbel", hidden=8))
    assert find_random_modules(net, 16) == []
    net = convert(network("mobilenet_v3_large", torch.float32), size=32)
    assert find_random_modules(net, 32) == ["backbone.classifier.2"]


def test_nothing_is_left_behind() -> None:
    net = convert(pairs(), size=16)
    net.backbone.conv3.train()
    modes = {name: module.training for name, module in net.named_modules()}
    state = torch.random.get_rng_state()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    find_random_modules(net, 16)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not step_statistics.collect(net).any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
