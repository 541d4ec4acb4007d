from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import override_gates
from adafilter_dist.models.gating.gated_conv import fix_statistics, set_kernels
from adafilter_dist.models.ops.passes import Kernels

Branches = Literal["none", "frozen", "both"]


def network(branches: Branches, kernels: Kernels = "auto") -> AdaFilterNet:
    torch.manual_seed(0)
    first, second = (
        (nn.Conv2d(inner, outer, 3), nn.BatchNorm2d(outer)) for inner, outer in ((3, 8), (8, 6))
    )
    layers = [*first, nn.ReLU(), *second, nn.Flatten(), nn.Linear(6 * 16, 2)]
    net = convert(nn.Sequential(*layers).double(), size=8)
    for layer in net.gated_layers.values():
        nn.init.normal_(layer.conv.weight)  # so that both branches differ
    fix_statistics(net, branches)
    set_kernels(net, kernels)
    return net.train()


def images() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=draw, dtype=torch.float64)


def filters_computed(net: AdaFilterNet, gates: Tensor) -> list[int]:
    """Output channels of every convolution of a forward, under gates (C,) of the first layer."""
    seen: list[int] = []

    class StagingCallbacks(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is torch.nn.functional.conv2d and not args[0].is_meta:
                seen.append(len(args[1]))
            return function(*args, **(kwargs or {}))

    def override(index: int, own: Tensor) -> Tensor:
        return gates.expand_as(own).to(own) if index == 0 else torch.ones_like(own)

    with override_gates(net, override), StagingCallbacks():
        net(images())
    return seen


@pytest.mark.parametrize(
    ("branches", "expected"),
    [("none", [8, 8, 6, 6]), ("frozen", [8, 5, 6]), ("both", [3, 5, 6])],
)
def test_filters_that_no_image_selects_are_not_computed(
    branches: Branches, expected: list[int]
) -> None:
    gates = torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0])
    assert filters_computed(network(branches), gates) == expected


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("branches", ["frozen", "both"])
def test_is_the_layer_with_the_statistics_it_has(branches: Branches, kernels: Kernels) -> None:
    net = network(branches, kernels)
    plain = network("none", "reference")
    for layer in plain.gated_layers.values():
        layer.bn2.eval()
        if branches == "both":
            layer.bn1.eval()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(images()), plain(images()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_was_not_computed_has_gradients_of_zero(value: float) -> None:
    net = network("both")
    with override_gates(net, lambda index, gates: gates * 0 + value):
        net(images()).sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
    for layer in net.gated_layers.values():
        assert layer.conv.weight.grad is not None
        assert bool(layer.conv.weight.grad.any()) == bool(value)


def test_gates_without_a_choice_to_make_get_no_gradient() -> None:
    net = network("both")
    first = next(iter(net.gated_layers.values()))
    logits: list[Tensor] = []

    def override(index: int, gates: Tensor) -> Tensor:
        if index == 0:
            gates = gates * 0 + (torch.arange(8) < 4)  # four tuned by all, four frozen by all
            gates[0, 0] = gates[0, 0] * 0  # and one where images differ
            gates.retain_grad()
            logits.append(gates)
        return gates

    with override_gates(net, override):
        net(images()).square().sum().backward()
    gradient = logits[0].grad
    assert gradient is not None and first.conv.out_channels == 8
    assert bool(gradient[:, 0].any()) and not gradient[:, 1:].any()


def test_running_statistics_of_a_fixed_branch_stay() -> None:
    net = network("frozen")
    layer = next(iter(net.gated_layers.values()))
    assert layer.bn1.running_mean is not None and layer.bn2.running_mean is not None
    before = layer.bn1.running_mean.clone(), layer.bn2.running_mean.clone()
    net(images())
    step_statistics.update_statistics(net)
    assert not torch.equal(layer.bn1.running_mean, before[0])
    assert torch.equal(layer.bn2.running_mean, before[1])
