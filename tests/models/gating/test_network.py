"""A converted network is an ordinary module: copied, saved, wrapped, compiled, cast."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import constant, observe_gates, override_gates
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.gating.penalty import penalty
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import images, network, pairs


def small(seed: int = 0) -> AdaFilterNet:
    return convert(pairs(), size=16, gate=Gate(decision="filter", hidden=16), seed=seed)


def trained(net: AdaFilterNet) -> AdaFilterNet:
    """A few steps on, with the graph of the last forward still attached."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for seed in range(3):
        loss = net.train()(images(4, 16, seed=seed)).square().mean() + penalty(net, "decide", 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step_statistics.update_statistics(net)
    net(images(4, 16))
    return net


def test_a_copy_computes_the_same_with_a_gate_of_its_own() -> None:
    net = trained(small())
    twin, x = copy.deepcopy(net), images(4, 16)
    assert torch.equal(twin.eval()(x), net.eval()(x))
    assert all(layer._gate[0] is twin.gate for layer in twin.gated_layers.values())
    with override_gates(twin, constant(1.0)):
        other = twin(x)
        assert not torch.equal(other, net(x))
    assert torch.equal(twin(x), net(x))


def test_state_dict_round_trip_and_pickle(tmp_path: Path) -> None:
    net, x = trained(small()).eval(), images(4, 16)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    fresh = small(seed=9).eval()
    assert not torch.equal(fresh(x), net(x))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(x), net(x))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


def test_state_holds_frozen_filters_as_buffers_and_no_sums() -> None:
    net = small()
    buffers = dict(net.named_buffers())
    parameters = dict(net.named_parameters())
    state = net.state_dict()
    for name, layer in net.gated_layers.items():
        key = f"backbone.{name}.frozen_weight"
        assert key in buffers and key in state and key not in parameters
        assert not layer.frozen_weight.requires_grad
    assert "backbone.conv1.frozen_bias" in state and "backbone.conv2.frozen_bias" not in state
    assert not any("sums" in key or ".last_" in key for key in state)


def test_half_way_precisions_and_double() -> None:
    net, x = convert(pairs().float(), size=16), images(4, 16)
    double = copy.deepcopy(net).double()
    assert double(x).dtype == torch.float64
    assert double.gate.decisions.logits[0].dtype == torch.float64
    torch.testing.assert_close(double(x).float(), net(x.float()), rtol=1e-4, atol=1e-4)


def test_channels_last_is_the_same() -> None:
    net, x = trained(small()).eval(), images(4, 16)
    before = net(x)
    net.to(memory_format=torch.channels_last)
    layer = net.gated_layers["conv2"]
    assert layer.frozen_weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), before)


@pytest.mark.slow
def test_same_draws_same_bits_in_training() -> None:
    """Dropout, stochastic depth and gate noise are all torch's default generator's."""

    def run() -> torch.Tensor:
        net = convert(
            network("mnasnet0_5"),
            size=32,
            gate=Gate(decision="filter", hidden=16, estimator="gumbel"),
        )
        torch.manual_seed(7)
        loss = net.train()(images(4)).square().sum()
        loss.backward()
        assert net.gate.cell.weight_hh.grad is not None
        return torch.cat([loss.detach()[None], step_statistics.collect(net)])

    assert torch.equal(run(), run())


class Wrapper(nn.Module):
    """As DistributedDataParallel: it calls the forward of what it holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(x)
        return logits


def test_hooks_and_penalties_reach_through_a_wrapper() -> None:
    net = Wrapper(small())
    seen: list[str] = []
    with observe_gates(net, lambda index, name, gates, p: seen.append(name)):
        net(images(2, 16))
    assert seen == ["conv1", "conv2"]
    assert float(penalty(net, "l1", 1.0)) > 0


@pytest.mark.slow
def test_compiled_network_computes_the_same() -> None:
    # In float64: without compiling a step of the gate is one operation, and rounding is magnified.
    net = convert(
        network("resnet18", torch.float64), size=32, gate=Gate(decision="filter", hidden=16)
    ).train()
    set_kernels(net, "reference")  # as the graph of a CPU has it
    x = images(2, 32, torch.float64)
    compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
    expected, got = net(x), compiled(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(step_statistics.collect(compiled), step_statistics.collect(net))
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, own), other in zip(net.named_parameters(), compiled.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, own.grad)


@pytest.mark.slow
def test_compiled_network_follows_mode_and_overrides() -> None:
    net, x = trained(small()), images(4, 16)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    net.train()
    compiled(x)
    net.eval()
    torch.testing.assert_close(compiled(x), net(x))
    with override_gates(net, constant(1.0)):
        forced = compiled(x)
        torch.testing.assert_close(forced, net(x))
    assert not torch.allclose(forced, compiled(x))


def test_modes_of_the_source_are_kept() -> None:
    model = pairs()
    model.train()
    model.bn1.eval()
    net = convert(model, size=16)
    layer = net.gated_layers["conv1"]
    assert net.training and net.gate.training and not layer.bn1.training
    assert net.gated_layers["conv2"].bn2.training
    assert not convert(pairs(), size=16).gate.training


@pytest.mark.parametrize("flag", [True, False])
def test_filters_are_trained_even_if_the_source_was_frozen(flag: bool) -> None:
    model = pairs()
    model.requires_grad_(flag)
    layer = convert(model, size=16).gated_layers["conv1"]
    assert layer.conv.weight.requires_grad
