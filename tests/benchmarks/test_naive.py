"""The opponent of the timings computes what the package computes."""

from __future__ import annotations

import copy

import pytest
import torch
from bench.naive import NaiveGatedConvBN, naive
from torch import nn
from torch.nn import functional

from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import constant, override_gates
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.gating.step_statistics import update_statistics
from tests.models.networks import images, network, pairs, randomise


def converted(name: str) -> AdaFilterNet:
    """In float64; the fine-tuned filters and BatchNorms differ from the frozen ones."""
    source = pairs() if name == "pairs" else network(name)
    net = convert(source, size=32, batchnorm="all")
    buffers = {key: value.clone() for key, value in net.state_dict().items() if "frozen" in key}
    randomise(net.backbone, seed=3)
    for key, value in buffers.items():
        assert torch.equal(net.state_dict()[key], value)
    return net


@pytest.mark.parametrize(
    "name", ["pairs", "resnet18", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_it_shares_no_layer_and_gives_the_same_logits(name: str) -> None:
    net = converted(name).eval()
    twin = naive(net)
    layers = [module for module in twin.modules() if isinstance(module, NaiveGatedConvBN)]
    assert len(layers) == len(net.gate.names)
    assert not any(isinstance(module, GatedConvBN) for module in twin.modules())
    assert {type(m) for m in twin.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(twin(x), net(x), rtol=1e-9, atol=1e-9)
        # The gates matter: otherwise anything would agree.
        with override_gates(net, constant(1.0)):
            assert not torch.allclose(net(x), twin(x))


@pytest.mark.parametrize("name", ["pairs", "resnet18"])
def test_a_training_step_gives_the_same_gradients_and_statistics(name: str) -> None:
    net = converted(name).train()
    twin = naive(net)
    x, labels = images(4), torch.arange(4)
    for model in (net, twin):
        functional.cross_entropy(model(x), labels).backward()
        update_statistics(model)
    compared = 0
    for path, layer in net.gated_layers.items():
        other = twin.backbone.get_submodule(path)
        assert isinstance(other, NaiveGatedConvBN)
        assert other.frozen.weight.grad is None
        assert torch.equal(other.frozen.weight, layer.frozen_weight)
        torch.testing.assert_close(other.tuned.weight.grad, layer.conv.weight.grad)
        for ours, theirs in ((layer.bn1, other.bn1), (layer.bn2, other.bn2)):
            torch.testing.assert_close(theirs.weight.grad, ours.weight.grad)
            torch.testing.assert_close(theirs.running_mean, ours.running_mean)
            torch.testing.assert_close(theirs.running_var, ours.running_var)
            compared += 1
    assert compared == 2 * len(net.gate.names)
    for parameter, its in zip(net.gate.parameters(), twin.gate.parameters(), strict=True):
        torch.testing.assert_close(its.grad, parameter.grad)


def test_the_network_it_is_made_of_stays_as_it_is() -> None:
    net = converted("pairs").eval()
    before = copy.deepcopy(net.state_dict())
    twin = naive(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    after = net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
