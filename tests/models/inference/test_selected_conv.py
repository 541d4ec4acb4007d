"""`for_inference`: the network's own predictions, from the chosen filters alone (I4)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import adafilter_dist
from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import constant, observe_gates, override_gates
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.inference.choose_kernel import NO_EPILOGUE
from adafilter_dist.models.inference.inference_gate import InferenceGate
from adafilter_dist.models.inference.selected_conv import InferenceNet, SelectedConv, for_inference
from tests.models.gates import gated, random_gates, unsettle
from tests.models.networks import architectures, images, network, pairs

QUICK = ("resnet18", "mobilenet_v2")
ARCHITECTURES = architectures(QUICK)


def converted(name: str, dtype: torch.dtype = torch.float64) -> AdaFilterNet:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    net = convert(network(name, dtype), example_input=images(1, dtype=dtype)).eval()
    unsettle(net)
    return net


def small() -> AdaFilterNet:
    net = convert(pairs(), size=16).eval()
    unsettle(net)
    return net


def flips(one: AdaFilterNet, other: InferenceNet) -> int:
    """Gates of the last forwards that are not the same."""
    gates = one.gate.decisions.gates
    return sum(int((gates[i].bool() != other.gate.decisions.gates[i].bool()).sum()) for i in gates)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_i4_the_same_logits_gates_and_predictions(name: str) -> None:
    net, x = converted(name), images(3)
    before = copy.deepcopy(net.state_dict())
    fast = for_inference(net)
    with torch.no_grad():
        wanted, found = net(x), fast(x)
        assert flips(net, fast) == 0
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        for index, logits in net.gate.decisions.logits.items():
            torch.testing.assert_close(
                fast.gate.decisions.logits[index], logits, rtol=1e-9, atol=1e-9
            )
        alone = torch.cat([fast(image[None]) for image in x])
        torch.testing.assert_close(alone, wanted, rtol=1e-9, atol=1e-9)
        for override in (random_gates(), random_gates(0.9), constant(0.0), constant(1.0)):
            with override_gates(net, override), override_gates(fast, override):
                torch.testing.assert_close(fast(x), net(x), rtol=1e-9, atol=1e-9)
    layers = fast.gated_layers
    assert list(layers) == list(net.gated_layers)
    assert all(isinstance(layer, SelectedConv) for layer in layers.values())
    assert not any(isinstance(module, GatedConvBN) for module in fast.modules())
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_in_float32_gates_flip_only_where_the_logit_is_almost_zero(
    layout: torch.memory_format,
) -> None:
    net = converted("resnet18", torch.float32)
    fast, x = for_inference(net), images(8, dtype=torch.float32).contiguous(memory_format=layout)
    with torch.no_grad():
        net(x), fast(x)
        # From the first gate that flips on, that image goes another way.
        same = torch.ones(len(x), dtype=torch.bool)
        flipped = 0
        for index, logits in net.gate.decisions.logits.items():
            other = fast.gate.decisions.logits[index]
            torch.testing.assert_close(other[same], logits[same], rtol=1e-3, atol=1e-3)
            differs = (other > 0) != (logits > 0)
            assert logits[differs & same[:, None]].abs().lt(1e-3).all()
            flipped += int(differs[same].sum())
            same &= ~differs.any(1)
        assert same.sum() >= 6 and flipped <= 4
        with override_gates(net, random_gates()), override_gates(fast, random_gates()):
            torch.testing.assert_close(fast(x), net(x), rtol=1e-3, atol=1e-3)


def test_fractions_blend_both_branches() -> None:
    net = converted("resnet18")
    fast, x = for_inference(net), images(2)

    def fraction(index: int, gates: Tensor) -> Tensor:
        return gates * 0.5 + 0.25

    with torch.no_grad():
        for override in (constant(0.3), fraction):
            with override_gates(net, override), override_gates(fast, override):
                torch.testing.assert_close(fast(x), net(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_layer_with_fractions_and_bits(groups: int) -> None:
    layer = gated(nn.Conv2d(4, 8, 3, 2, 1, groups=groups, dtype=torch.float64))
    fast = SelectedConv(layer, InferenceGate(layer._gate[0]))
    x = images(3, 9)[:, :1].expand(3, 4, 9, 9) * torch.arange(1, 5).view(1, 4, 1, 1)
    source, gate = layer._gate[0], fast._gate[0]
    for override in (random_gates(), constant(0.7), random_gates(0.5)):
        source.overrides, gate.overrides = [override], [override]
        source.start(), gate.start()
        with torch.no_grad():
            torch.testing.assert_close(fast(x), layer(x), rtol=1e-11, atol=1e-11)


def test_observers_see_what_they_see_on_the_source() -> None:
    net = converted("resnet18")
    fast, x = for_inference(net), images(2)
    seen: list[tuple[int, str, Tensor, Tensor]] = []
    with (
        torch.no_grad(),
        observe_gates(net, lambda *what: seen.append(what)),
        observe_gates(fast, lambda *what: seen.append(what)),
    ):
        net(x), fast(x)
        with override_gates(net, constant(0.5)), override_gates(fast, constant(0.5)):
            net(x), fast(x)
    layers = len(net.gate.names)
    own, other, own_half, other_half = (seen[i * layers : (i + 1) * layers] for i in range(4))
    for a, b in (*zip(own, other, strict=True), *zip(own_half, other_half, strict=True)):
        assert a[:2] == b[:2] and torch.equal(a[2], b[2]) and a[2].dtype == b[2].dtype
        torch.testing.assert_close(a[3], b[3])


def test_a_convolution_that_cannot_be_folded_stays_as_it_was() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    source = pairs()
    standard = timm_layers.StdConv2d(4, 4, 3, padding=1).double()
    source.conv2 = standard
    net = convert(source, size=16).eval()
    unsettle(net)
    fast, x = for_inference(net), images(3, 16)
    kinds = [type(layer) for layer in fast.gated_layers.values()]
    assert kinds == [SelectedConv, GatedConvBN]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-10, atol=1e-10)
        with override_gates(net, random_gates()), override_gates(fast, random_gates()):
            torch.testing.assert_close(fast(x), net(x), rtol=1e-10, atol=1e-10)
    assert fast.gated_layers["conv2"]._gate[0] is fast.gate


def test_it_refuses_to_be_trained_and_what_has_no_gates() -> None:
    fast = adafilter_dist.for_inference(small().train())
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert fast.eval() is fast and fast.train(False) is fast
    with pytest.raises(UserError, match="for inference only"):
        fast.train()
    with pytest.raises(UserError, match="Linear has no gates"):
        for_inference(nn.Linear(1, 1))
    with pytest.raises(UserError, match="InferenceNet has no gates"):
        for_inference(fast)
    with pytest.raises(RuntimeError, match="call the whole network"):
        fast.backbone(images(1, 16))


def test_a_copy_is_its_own() -> None:
    net, x = small(), images(4, 16)
    fast = for_inference(net)
    with torch.no_grad():
        wanted = fast(x)
        other = copy.deepcopy(fast)
        with override_gates(other, constant(0.0)):
            changed = other(x[:1])
            assert torch.equal(fast(x), wanted)
        with override_gates(net, constant(0.0)):
            torch.testing.assert_close(changed, net(x[:1]))
        assert torch.equal(other(x), wanted)
        other.get_buffer("backbone.conv1.rows").zero_()
        assert torch.equal(fast(x), wanted) and not torch.equal(other(x), wanted)


def test_to_channels_last_its_rows_stay_as_they_lie() -> None:
    fast = for_inference(small())
    fast.to(memory_format=torch.channels_last)
    for layer in fast.gated_layers.values():
        assert isinstance(layer, SelectedConv) and layer.rows.is_contiguous()


def test_it_can_be_moved_after_it_was_used() -> None:
    net, x = small(), images(4, 16)
    fast = for_inference(net)
    with torch.no_grad():
        fast(x[:1])
        y = fast.float()(x[:1].float())
        torch.testing.assert_close(y, net.float()(x[:1].float()), rtol=1e-4, atol=1e-4)
        fast.double()(x[:1])
        net.double()
        torch.testing.assert_close(fast(x), net(x), rtol=1e-5, atol=1e-5)


def test_inference_mode_no_grad_and_gradients_of_the_pictures() -> None:
    net, x = small(), images(4, 16)
    fast = for_inference(net)
    with torch.inference_mode():
        first = fast(x[:1]).clone()
    with torch.no_grad():
        assert torch.equal(fast(x[:1]), first)
    with torch.inference_mode():
        assert torch.equal(fast(x[1:2]), for_inference(net)(x[1:2]))
    gradients = []
    for model in (net, fast):
        pictures = x.clone().requires_grad_()
        model(pictures).square().sum().backward()
        assert pictures.grad is not None
        gradients.append(pictures.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_one_after_another_is_each_alone() -> None:
    """Filters kept from the last picture do not leak into the next: the same bits as fresh."""
    net = converted("resnet18", torch.float32)
    fast, pictures = for_inference(net), images(3, dtype=torch.float32)
    with torch.no_grad():
        for picture in pictures:
            assert torch.equal(fast(picture[None]), for_inference(net)(picture[None]))


def test_autocast() -> None:
    net = converted("resnet18", torch.float32)
    fast, x = for_inference(net), images(4, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for count in (1, 4):
            with override_gates(net, random_gates()), override_gates(fast, random_gates()):
                wanted, found = net(x[:count]), fast(x[:count])
            assert found.dtype == torch.bfloat16
            scale = float(wanted.float().abs().max())
            assert float((found - wanted).float().abs().max()) < 0.05 * scale
        assert {t.dtype for t in fast.gate.decisions.logits.values()} == {torch.float32}


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_way_for_cuda_without_its_kernel(groups: int, settled: bool) -> None:
    """Both branches and a choice: plain PyTorch, so that it runs here too."""
    layer = gated(nn.Conv2d(4, 8, 3, 2, 1, groups=groups, dtype=torch.float64))
    fast = SelectedConv(layer, InferenceGate(layer._gate[0]))
    bits = random_gates()(0, torch.zeros(3, 8)).bool()
    if settled:
        bits[:, 2:5] = bits[0, 2:5]
        constant_bits = torch.full((8,), -1, dtype=torch.int8)
        constant_bits[2:5] = bits[0, 2:5].to(torch.int8)
        fast.fix_gates(constant_bits)
    x = images(3, 9)[:, :1].expand(3, 4, 9, 9) * torch.arange(1, 5).view(1, 4, 1, 1)
    with torch.no_grad():
        wanted = torch.where(bits[:, :, None, None], layer.tuned(x), layer.frozen(x))
        torch.testing.assert_close(
            fast._on_cuda(x, bits, NO_EPILOGUE), wanted, rtol=1e-11, atol=1e-11
        )
