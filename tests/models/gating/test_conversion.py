"""Which convolutions are gated, in what order, and why the others are not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision import models

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.find_pairs import find_pairs
from adafilter_dist.models.gating.gate_overrides import observe_gates
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.gating.modes import in_mode
from adafilter_dist.models.gating.trace import ConvCall, _trace_by_forward, _trace_by_fx
from tests.models.networks import Pairs, images, network, pairs


def reasons(model: nn.Module, **options: str) -> dict[str, str]:
    return dict(find_pairs(model, images(2, 16), **options).left_out)


def gated(model: nn.Module, **options: str) -> list[str]:
    return [pair.conv for pair in find_pairs(model, images(2, 16), **options).gated]


def test_pairs_are_gated_and_a_convolution_without_batchnorm_is_not() -> None:
    assert gated(pairs()) == ["conv1", "conv2"]
    assert reasons(pairs()) == {"conv3": "no BatchNorm2d directly behind it"}


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_large"])
def test_order_is_that_of_execution(name: str) -> None:
    model, x = network(name), images(2)
    called: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o, path=path: called.append(path))
    model(x)
    model = network(name)  # without the hooks
    net = convert(model, example_input=x)
    assert list(net.gated_layers) == [path for path in called if path in net.gated_layers]
    seen: list[tuple[int, str]] = []
    with observe_gates(net, lambda index, layer, gates, p: seen.append((index, layer))):
        net(x)
    assert seen == list(enumerate(net.gated_layers))


def test_downsample_runs_after_the_branch_it_is_added_to() -> None:
    net = convert(network("resnet18"), size=32)
    names = list(net.gated_layers)
    assert names[0] == "conv1" and len(names) == 20
    assert names.index("layer2.0.downsample.0") == names.index("layer2.0.conv2") + 1


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "efficientnet_b0", "densenet121"])
def test_watching_a_forward_finds_what_fx_finds(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, **options)
    with in_mode(model, training=False):
        by_fx, by_forward = _trace_by_fx(model), _trace_by_forward(model, torch.randn(2, 3, 32, 32))
    assert by_fx.calls == by_forward.calls
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def sole(convs: Iterable[ConvCall]) -> list[tuple[str, str]]:
        single = [call for call in convs if len(call.readers) == 1]
        return [(call.name, call.readers[0]) for call in single if call.readers[0] in norms]

    assert sole(by_fx.convs) == sole(by_forward.convs) and sole(by_fx.convs)


def python_control_flow(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn1(self.conv1(x)).relu()
    if float(x.sum()) > -1:  # torch.fx cannot follow this
        x = self.bn2(self.conv2(x)).relu()
    return self.end(x)


def test_code_that_fx_cannot_follow_is_watched_instead() -> None:
    found = find_pairs(pairs(python_control_flow), images(2, 16))
    assert found.found_by == "forward"
    assert [pair.conv for pair in found.gated] == ["conv1", "conv2"]
    assert find_pairs(pairs(), images(2, 16)).found_by == "fx"


def flow(x: Tensor) -> None:
    """Forces the fall-back from torch.fx."""
    assert float(x.sum()) != 1e9


def two_readers(self: Pairs, x: Tensor) -> Tensor:
    y = self.conv1(x)
    x = (self.bn1(y) + y).relu()
    return self.end(self.bn2(self.conv2(x)).relu())


def two_readers_watched(self: Pairs, x: Tensor) -> Tensor:
    flow(x)
    return two_readers(self, x)


def functional_between(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn1(self.conv1(x).relu())
    return self.end(self.bn2(self.conv2(x)).relu())


def functional_between_watched(self: Pairs, x: Tensor) -> Tensor:
    flow(x)
    return functional_between(self, x)


def called_twice(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
    return self.end(self.bn2(self.conv2(x)))


def called_twice_watched(self: Pairs, x: Tensor) -> Tensor:
    flow(x)
    return called_twice(self, x)


def norm_called_twice(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn1(self.conv1(x)).relu()
    return self.end(self.bn1(self.conv2(x)))


def weight_read_directly(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
    return self.end(x + F.conv2d(x, self.conv2.weight, padding=1))


def only_in_training(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn1(self.conv1(x)).relu()
    if self.training:
        x = x + self.bn2(self.conv2(x))
    return self.end(x)


def second_output_unused(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn1(self.conv1(x)).relu()
    self.conv2(x)
    return self.end(x)


@pytest.mark.parametrize(
    ("forward", "layer", "words"),
    [
        (two_readers, "conv1", "read 2 times"),
        (two_readers_watched, "conv1", "read 2 times"),
        (functional_between, "conv1", "no BatchNorm2d directly behind it"),
        (functional_between_watched, "conv1", "no BatchNorm2d directly behind it"),
        (called_twice, "conv2", "used 2 times"),
        (called_twice_watched, "conv2", "used 2 times"),
        (norm_called_twice, "conv1", "its BatchNorm bn1 is used 2 times"),
        (weight_read_directly, "conv2", "used 2 times"),
        (only_in_training, "conv2", "does not run in evaluation mode"),
        (second_output_unused, "conv2", "its output is not used"),
    ],
)
def test_what_cannot_be_gated_is_left_out_and_the_rest_still_works(
    forward: Callable[[Pairs, Tensor], Tensor], layer: str, words: str
) -> None:
    if forward is norm_called_twice:
        with pytest.raises(UserError, match=words):
            convert(pairs(forward), size=16)
        return
    model, x = pairs(forward), images(2, 16)
    before = model(x)
    net = convert(model, example_input=x)
    assert words in dict(net.report.left_out)[layer]
    assert layer not in net.gated_layers and len(net.gated_layers) == 1
    assert torch.equal(net(x), before)
    net.train()(x).sum().backward()  # train-only branches run as well


def test_a_module_under_two_names_is_left_out() -> None:
    model = pairs()
    model.add_module("alias", model.conv1)
    assert "registered under 2 names" in reasons(model)["conv1"]


def test_weight_shared_by_two_convolutions() -> None:
    model = pairs()
    model.conv1, model.bn1 = nn.Conv2d(3, 3, 3, padding=1).double(), nn.BatchNorm2d(3).double()
    model.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False).double()
    model.bn2 = nn.BatchNorm2d(3).double()
    model.conv3 = nn.Conv2d(3, 6, 1).double()
    assert gated(model) == ["conv1", "conv2"]
    model.conv2.weight = model.conv1.weight
    with pytest.raises(UserError, match="shares a parameter with conv"):
        find_pairs(model, images(2, 16))


def test_convolutions_with_more_than_a_weight_are_left_out() -> None:
    model = pairs()
    parametrizations.weight_norm(model.conv1)
    assert reasons(model)["conv1"] == "its weight is parametrised"
    model = pairs()
    model.conv1.register_forward_hook(lambda module, inputs, output: output)
    assert reasons(model)["conv1"] == "hooks are attached to it"
    model = pairs()
    model.conv1.register_buffer("mask", torch.ones(1))
    assert "state of its own" in reasons(model)["conv1"]


def test_batchnorm_without_running_statistics_is_not_gated() -> None:
    model = pairs()
    model.bn1 = nn.BatchNorm2d(4, track_running_stats=False).double()
    assert "no running statistics" in reasons(model)["conv1"]


class SamePadding(nn.Conv2d):
    """Pads in its forward and standardises its weight, as timm's and others' convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, self.bias, self.stride)


def test_subclasses_of_conv2d_keep_their_own_forward_on_both_branches() -> None:
    model = pairs()
    model.conv1 = SamePadding(3, 4, 3).double()
    x = images(2, 16)
    before = model(x)
    net = convert(model, example_input=x)
    assert "conv1" in net.gated_layers and torch.equal(net(x), before)
    layer = net.gated_layers["conv1"]
    assert torch.equal(layer.frozen(x), layer.tuned(x))


def test_layers_pattern_restricts_and_freeze_holds_the_others_still() -> None:
    net = convert(network("resnet18"), size=32, layers=r"^layer[34]\.", ungated="freeze")
    assert all(name.startswith(("layer3", "layer4")) for name in net.gated_layers)
    assert dict(net.report.left_out)["conv1"] == r"does not match layers='^layer[34]\\.'"
    convs = {n: m for n, m in net.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    for name, conv in convs.items():
        assert conv.weight.requires_grad == (name.removesuffix(".conv") in net.gated_layers)
    norms = {n: m for n, m in net.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        assert norm.weight.requires_grad == (name.rpartition(".")[0] in net.gated_layers)
    assert net.report.parameters.still == sum(
        p.numel() for p in net.backbone.parameters() if not p.requires_grad
    )
    with pytest.raises(UserError, match="not a regular expression"):
        convert(network("resnet18"), size=32, layers="(")
    nothing = (
        r"'\^layer4\\\\.2' matches none of the 20 conv.*did you mean 'layer4.1'.*layer1.0.conv1,"
    )
    with pytest.raises(UserError, match=nothing):
        convert(network("resnet18"), size=32, layers=r"^layer4\.2")


@pytest.mark.parametrize("name", ["convnext_tiny", "squeezenet1_0"])
def test_a_network_without_pairs_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"none of the .* can be gated"):
        convert(models.get_model(name), size=64)


def returns_a_tuple(self: Pairs, x: Tensor) -> Any:
    x = self.bn1(self.conv1(x)).relu()
    return self.end(self.bn2(self.conv2(x))), x


def test_a_network_that_does_not_fit_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="does not run on an input of shape"):
        convert(pairs(python_control_flow), example_input=torch.randn(2, 1, 8, 8).double())
    with pytest.raises(UserError, match="returns a tuple"):
        convert(pairs(returns_a_tuple), size=8)


def test_a_network_that_computes_something_else_afterwards_is_refused() -> None:
    def reads_statistics(self: Pairs, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu() * getattr(self.bn1, "eps", 2.0)
        return self.end(self.bn2(self.conv2(x)).relu())

    with pytest.raises(UserError, match="computes something else after conversion"):
        convert(pairs(reads_statistics), size=16)


def test_an_auxiliary_head_is_left_out_and_trains() -> None:
    model = models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    net = convert(model, size=64)
    assert set(dict(net.report.left_out).values()) == {"does not run in evaluation mode"}
    output = net.train()(torch.randn(2, 3, 64, 64))
    assert output.aux_logits1.shape == (2, 5)  # type: ignore[attr-defined]


SHARES = {"densenet121": 0.59, "mobilenet_v3_large": 0.49, "efficientnet_b0": 0.84, "resnet18": 1.0}


@pytest.mark.parametrize("name", SHARES)
def test_report_counts_every_parameter_once(name: str) -> None:
    model = models.get_model(name)
    convs = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    net = convert(model, size=32)
    report, counts = net.report, net.report.parameters
    trained = sum(p.numel() for p in net.parameters())
    parts = (counts.tuned, counts.gate, counts.batchnorm, counts.head, counts.other)
    assert sum(parts) == trained and counts.still == 0
    frozen = {n: b for n, b in net.named_buffers() if "frozen_" in n}
    assert counts.frozen == sum(b.numel() for b in frozen.values())
    assert report.gated_share == pytest.approx(sum(layer.weights for layer in report.gated) / convs)
    assert report.gated_share == pytest.approx(SHARES[name], abs=0.005)
    assert bool(report.warnings()) == (SHARES[name] < 0.7)
    head = net.backbone.get_submodule(net.head or "")
    assert counts.head == sum(parameter.numel() for parameter in head.parameters())
    text = str(report)
    assert all(layer.name in text for layer in report.gated) and f"{counts.gate:,}" in text


def test_every_batchnorm_waits_for_the_step() -> None:
    net = convert(network("densenet121"), size=32)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(norm, MicroBatchNorm2d) for norm in norms)
    assert len(norms) == 2 * len(net.gated_layers) + 62  # 121 BatchNorms, 59 of them gated


def test_timm_batchnorm_keeps_its_activation() -> None:
    pytest.importorskip("timm")
    net = convert(copy.deepcopy(network("timm/efficientnet_lite0")), size=32)
    layer = net.report.gated[0]
    behind = net.backbone.get_submodule(layer.batchnorm)
    assert isinstance(behind, nn.Sequential) and isinstance(behind[1], nn.ReLU6)
    assert isinstance(net.backbone.get_submodule(layer.name), GatedConvBN)


def test_frozen_leftovers_keep_their_statistics_and_cost_no_backward() -> None:
    net = convert(network("resnet18"), size=32, layers=r"^layer[34]\.", ungated="freeze").train()
    early = net.backbone.get_submodule("bn1")
    assert isinstance(early, MicroBatchNorm2d)
    seen: list[bool] = []
    net.backbone.get_submodule("layer2").register_forward_hook(
        lambda module, inputs, output: seen.append(output.requires_grad)
    )
    assert early.running_mean is not None
    before = early.running_mean.clone()
    net(images(4)).sum().backward()
    step_statistics.apply(net, step_statistics.collect(net))
    assert seen == [False]
    assert torch.equal(early.running_mean, before)
    assert not early.weight.requires_grad


def dropped_between(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn1(F.dropout2d(self.conv1(x), 0.5) if self.training else self.conv1(x)).relu()
    return self.end(self.bn2(self.conv2(x)).relu())


def twice_in_training(self: Pairs, x: Tensor) -> Tensor:
    x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
    return self.end(self.bn2(self.conv2(x)) if self.training else x)


@pytest.mark.parametrize(
    ("forward", "layer", "words"),
    [
        (dropped_between, "conv1", "in training its output is read by dropout2d"),
        (twice_in_training, "conv2", "in training conv2 is used 2 times in a forward"),
    ],
)
def test_a_pair_is_one_in_training_too(
    forward: Callable[[Pairs, Tensor], Tensor], layer: str, words: str
) -> None:
    model, x = pairs(forward), images(4, 16)
    source = copy.deepcopy(model)
    # With statistics of all images both branches are the source's BatchNorm, whatever the gates.
    net = convert(model, size=16, batchnorm="all")
    assert dict(net.report.left_out)[layer] == words and len(net.gated_layers) == 1
    outputs = []
    for each in (source, net):
        torch.manual_seed(1)
        outputs.append(each.train()(x))
    torch.testing.assert_close(*outputs)


class Still(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Still:
        super().train(False)
        return self


class FreezesByName(Pairs):
    def train(self, mode: bool = True) -> FreezesByName:
        super().train(mode)
        self.bn2.train(False)
        return self


def test_a_batchnorm_that_stays_in_evaluation_mode_is_refused_by_name() -> None:
    model = pairs()
    model.bn2 = Still(4).double()
    with pytest.raises(UserError, match=r"bn2 \(Still\) stays in evaluation mode in training"):
        convert(model, size=16)
    frozen = FreezesByName().double().eval()
    with pytest.raises(UserError, match=r"bn2 \(BatchNorm2d\) stays in evaluation mode"):
        convert(frozen, size=16)


def test_what_is_attached_to_a_batchnorm_is_not_lost() -> None:
    model = pairs()
    model.bn1.register_forward_hook(lambda module, inputs, output: -output)
    assert reasons(model)["conv1"] == "hooks are attached to its BatchNorm bn1"
    x = images(2, 16)
    before = model(x)
    assert torch.equal(convert(model, size=16)(x), before)
    model = pairs()
    parametrizations.weight_norm(model.bn1, dim=None)
    assert "not a plain BatchNorm2d" in reasons(model)["conv1"]
    with pytest.raises(UserError, match="bn1 is a BatchNorm2d whose weight is parametrised"):
        convert(model, size=16)


def test_a_convolution_whose_forward_was_replaced_is_left_out() -> None:
    model, x = pairs(), images(2, 16)
    conv = model.conv1
    conv.forward = lambda y: 2 * nn.Conv2d.forward(conv, y)  # type: ignore[method-assign]
    assert reasons(model)["conv1"] == "its forward was replaced"
    before = model(x)
    assert torch.equal(convert(model, size=16)(x), before)


def test_the_layer_that_a_network_reaches_into_is_named() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(self.conv(x)) * self.bn.running_mean.mean()
            return y

    model = pairs()
    model.conv3 = nn.Sequential(Reads(), nn.Conv2d(4, 6, 1)).double()  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"reaches into .*, first in conv3\.0 \(Reads\) \(Attribute"
    ):
        convert(model, size=16)


class DropsFilters(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, self.training))


def test_a_difference_in_training_alone_is_refused_by_name() -> None:
    """Both branches would draw: those of the source's one convolution are not to be had."""
    model = pairs()
    model.conv2 = DropsFilters(4, 4, 3, padding=1).double()
    with pytest.raises(
        UserError, match=r"in training mode \(.*\), first in conv2 \(DropsFilters\)"
    ):
        convert(model, size=16)


def test_modules_keep_their_modes_and_generators_their_state() -> None:
    model = pairs().train()
    model.bn1.eval()
    state = torch.get_rng_state()
    net = convert(model, size=16)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and not net.gated_layers["conv1"].training
    assert net.gated_layers["conv2"].training
    assert not any(norm.step_sums.any() for norm in net.modules() if hasattr(norm, "step_sums"))
