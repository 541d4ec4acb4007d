"""The identities I1 to I4 that make AdaFilter what it is, on many architectures, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import constant, observe_gates, override_gates
from adafilter_dist.models.gating.gated_conv import GatedConvBN, set_kernels
from adafilter_dist.models.gating.selected_batchnorm import BatchNormKind
from adafilter_dist.models.ops.passes import Kernels
from tests.models.networks import architectures, images, network, pairs
from tests.models.ops.reference import selected_only

# The others with the slow tests.
QUICK = ("resnet18",)
ARCHITECTURES = architectures(QUICK)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> nn.Module:
    """Built once for all tests of one architecture; each takes a copy."""
    if request.param.startswith("timm/"):
        pytest.importorskip("timm")
    return network(request.param)


def random_gates(index: int, gates: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, 2, gates.shape, generator=generator).to(gates)


def unsettle(net: AdaFilterNet) -> None:
    """Make the tuned branch differ from the frozen one, as after training."""
    with torch.no_grad():
        for layer in net.gated_layers.values():
            layer.conv.weight.mul_(1.3)
            for bn, shift in ((layer.bn1, 0.2), (layer.bn2, -0.1)):
                bn.bias.add_(shift)
                assert bn.running_mean is not None and bn.running_var is not None
                bn.running_mean.add_(shift)
                bn.running_var.mul_(1 + shift)


def test_i1_right_after_conversion_the_network_computes_the_same(architecture: nn.Module) -> None:
    model, x = copy.deepcopy(architecture), images(2)
    with torch.no_grad():
        before = model(x)
        net = convert(model, example_input=x)
        assert torch.equal(net(x), before)
        for override in (random_gates, constant(0.3)):
            with override_gates(net, override):
                assert torch.equal(net(x), before)
        unsettle(net)
        assert not torch.allclose(net(x), before)


def train_once(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)  # dropout and stochastic depth
    output: Tensor = model.train()(x)
    (output * torch.arange(1.0, output.numel() + 1, dtype=x.dtype).view_as(output)).sum().backward()
    return output.detach()


def gradient(parameter: Tensor | None) -> Tensor:
    assert parameter is not None and parameter.grad is not None
    return parameter.grad


@dataclass(frozen=True)
class Way:
    """How gated layers train."""

    kernels: Kernels
    batchnorm: BatchNormKind

    @property
    def same_code(self) -> bool:
        """Whether both sides run the same modules."""
        return self.kernels == "reference" and self.batchnorm == "all"

    def pictures(self) -> Tensor:
        """Other code rounds elsewhere. Statistics of two pixels make gradients of 1e9 of that, so
        there are more."""
        return images(2) if self.same_code else images(4, 64)

    def alike(self, one: Tensor, other: Tensor) -> bool:
        """Equal to the bit where both run the same modules, else up to rounding (float64)."""
        if self.same_code:
            return torch.equal(one, other)
        return float((one - other).abs().max()) <= 1e-6 * (1 + float(other.abs().max()))


WAYS = [Way("reference", "all"), Way("auto", "selected")]


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    return way


def compare_ungated(plain: nn.Module, net: AdaFilterNet, way: Way) -> None:
    """Head, ungated convolutions and their BatchNorms: the same gradients on both sides."""
    converted = dict(net.backbone.named_parameters())
    shared = [name for name, _ in plain.named_parameters() if name in converted]
    assert net.head is not None and f"{net.head}.weight" in shared
    for name in shared:
        assert way.alike(gradient(converted[name]), gradient(plain.get_parameter(name))), name


def test_i2_gates_at_one_are_plain_fine_tuning(architecture: nn.Module, way: Way) -> None:
    plain, x = copy.deepcopy(architecture), way.pictures()
    net = convert(copy.deepcopy(plain), example_input=x[:1], batchnorm=way.batchnorm)
    set_kernels(net, way.kernels)
    replace_batchnorm(plain)
    with override_gates(net, constant(1.0)):
        assert way.alike(train_once(net, x), train_once(plain, x))
    for layer, pair in zip(net.gated_layers.values(), net.report.gated, strict=True):
        conv, bn = plain.get_submodule(pair.name), plain.get_submodule(pair.batchnorm)
        for own, other in ((layer.conv, conv), (layer.bn1, bn)):
            for key, parameter in other.named_parameters():
                assert way.alike(gradient(own.get_parameter(key)), gradient(parameter)), pair
        assert not any(gradient(parameter).any() for parameter in layer.bn2.parameters())
    compare_ungated(plain, net, way)


def test_i2_gates_at_zero_train_only_bn2_and_the_ungated(architecture: nn.Module, way: Way) -> None:
    plain, x = copy.deepcopy(architecture), way.pictures()
    net = convert(copy.deepcopy(plain), example_input=x[:1], batchnorm=way.batchnorm)
    set_kernels(net, way.kernels)
    replace_batchnorm(plain)
    for pair in net.report.gated:
        plain.get_submodule(pair.name).requires_grad_(False)
    with override_gates(net, constant(0.0)):
        assert way.alike(train_once(net, x), train_once(plain, x))
    for layer, pair in zip(net.gated_layers.values(), net.report.gated, strict=True):
        for key, parameter in plain.get_submodule(pair.batchnorm).named_parameters():
            assert way.alike(gradient(layer.bn2.get_parameter(key)), gradient(parameter)), pair
        still = [*layer.conv.parameters(), *layer.bn1.parameters()]
        assert not any(gradient(parameter).any() for parameter in still)
    for parameter in plain.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    compare_ungated(plain, net, way)


OPTIMISERS: list[Callable[..., torch.optim.Optimizer]] = [
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=["sgd", "adamw"])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_i3_frozen_filters_never_change_by_a_bit(
    optimiser: Callable[..., torch.optim.Optimizer], precision: torch.dtype
) -> None:
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    net = convert(network("shufflenet_v2_x0_5", dtype), size=32)
    source = {name: layer.conv.weight.detach().clone() for name, layer in net.gated_layers.items()}
    optimizer = optimiser(net.parameters())
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = net.train()(images(4, dtype=dtype, seed=step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, layer in net.gated_layers.items():
        assert torch.equal(layer.frozen_weight, source[name])
        assert not torch.equal(layer.conv.weight, source[name])


def test_i3_frozen_biases_are_kept_too() -> None:
    net = convert(pairs(), size=8)
    bias = net.gated_layers["conv1"].conv.bias
    assert bias is not None
    source = bias.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    net.train()(images(4, 8)).square().mean().backward()
    optimizer.step()
    frozen = net.gated_layers["conv1"].frozen_bias
    assert frozen is not None and torch.equal(frozen, source) and not torch.equal(bias, source)


class SelectedOnly:
    """Computes a layer by the reference, with the gates that the network's own gate gives."""

    def __init__(self, layer: GatedConvBN) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        y = selected_only(self.layer, x, self.layer.gates(x))
        y = y if residual is None else y + residual
        return y.relu() if relu else y


def test_i4_computing_only_the_selected_filters_is_the_same(architecture: nn.Module) -> None:
    x = images(2)
    net = convert(copy.deepcopy(architecture), example_input=x[:1]).eval()
    unsettle(net)
    seen: list[Tensor] = []
    with torch.no_grad(), observe_gates(net, lambda i, name, gates, p: seen.append(gates)):
        both = net(x)
        for layer in net.gated_layers.values():
            layer.forward = SelectedOnly(layer)  # type: ignore[method-assign]
        only = net(x)
    first, second = torch.cat(seen, 1).chunk(2, 1)
    assert torch.equal(first, second)
    assert 0.05 < float(first.mean()) < 0.95
    assert float(first.var(0).mean()) > 0.001, "the gates must differ from image to image"
    assert torch.allclose(both, only, rtol=1e-12, atol=1e-12)
