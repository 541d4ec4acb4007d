"""AdaFilter without one of its parts: one BatchNorm for both branches, gates without a state."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods import build_method
from adafilter_dist.methods.export import export_model, load
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.gating.batchnorm import replace_batchnorm
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.gating.gate_overrides import constant, override_gates
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from adafilter_dist.models.gating.shared_batchnorm import SharedNormConvBN
from adafilter_dist.models.inference.inference_gate import InferenceGate
from adafilter_dist.models.inference.selected_conv import for_inference
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.sections.model import Gate
from tests.methods.test_export import PREPROCESS
from tests.models.networks import images, network

LAYERS = [("a", 3, 8), ("b", 8, 15), ("c", 15, 16)]


def shared(seed: int = 0) -> AdaFilterNet:
    """A small network whose tuned filters differ from the frozen ones."""
    net = convert(network("resnet18"), example_input=images(2), batchnorm="shared", seed=seed)
    with torch.no_grad():
        for layer in net.gated_layers.values():
            layer.conv.weight.mul_(1.3)
            assert layer.bn1.running_mean is not None
            layer.bn1.running_mean.add_(0.1)
    return net


def random_gates(index: int, gates: Tensor) -> Tensor:
    drawn = torch.Generator().manual_seed(index)
    return torch.randint(0, 2, gates.shape, generator=drawn).to(gates)


def test_one_batchnorm_takes_the_statistics_of_what_was_chosen() -> None:
    net = shared().train()
    layer = net.gated_layers["layer1.0.conv1"]
    assert isinstance(layer, SharedNormConvBN) and not hasattr(layer, "bn2")
    drawn = torch.Generator().manual_seed(4)
    x = torch.randn(6, 64, 5, 5, generator=drawn, dtype=torch.float64)
    with override_gates(net, random_gates), torch.no_grad():
        net.gate.start()
        y = layer(x)
        bits = net.gate.decisions.gates[layer.index]
        net.gate.stop()
    f = nn.functional.conv2d(x, layer.conv.weight, padding=1)
    s = nn.functional.conv2d(x, layer.frozen_weight, padding=1)
    for c in range(0, 64, 9):
        mixed = torch.stack([(f if bits[n, c] else s)[n, c] for n in range(6)])
        wanted = (mixed - mixed.mean()) / (mixed.var(unbiased=False) + layer.bn1.eps).sqrt()
        wanted = wanted * layer.bn1.weight[c] + layer.bn1.bias[c]
        torch.testing.assert_close(y[:, c], wanted.detach(), rtol=1e-9, atol=1e-9)


def test_with_gates_at_one_it_is_plain_fine_tuning() -> None:
    """I2, to the bit; convert() itself checks that nothing changes before training."""
    plain, x = network("resnet18"), images(2)
    net = convert(copy.deepcopy(plain), example_input=x[:1], batchnorm="shared").train()
    replace_batchnorm(plain).train()
    with override_gates(net, constant(1.0)):
        ours, theirs = net(x), plain(x)
    assert torch.equal(ours, theirs)
    for out in (ours, theirs):
        (out * torch.arange(1.0, out.numel() + 1, dtype=x.dtype).view_as(out)).sum().backward()
    for pair in net.report.gated:
        layer = net.gated_layers[pair.name]
        for own, other in ((layer.conv, pair.name), (layer.bn1, pair.batchnorm)):
            for key, parameter in own.named_parameters():
                wanted = plain.get_submodule(other).get_parameter(key).grad
                assert parameter.grad is not None and wanted is not None
                assert torch.equal(parameter.grad, wanted), (pair.name, key)


def test_micro_batches_of_one_forward_have_statistics_of_their_own() -> None:
    net, x = shared().train(), images(4)
    with torch.no_grad():
        wanted = torch.cat([net(part) for part in x.split(2)])
        with in_micro_batches(2):
            torch.testing.assert_close(net(x), wanted, rtol=1e-9, atol=1e-9)


def test_for_inference_its_batchnorm_is_folded_into_both_filters() -> None:
    net, x = shared().eval(), images(3)
    fast = for_inference(net)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-9, atol=1e-9)
        for override in (random_gates, constant(0.3)):
            with override_gates(net, override), override_gates(fast, override):
                torch.testing.assert_close(fast(x), net(x), rtol=1e-9, atol=1e-9)


def test_both_ablations_are_in_an_export(tmp_path: Path) -> None:
    recipe = load_recipe(
        [
            "recipe=demo",
            *("method=adafilter", "model.name=small_resnet", "model.weights=FASHION_MNIST"),
            *("method.shared_batchnorm=true", "method.gate.recurrent=false", "method.layers=.*"),
        ]
    )
    trainable = build_method(load_backbone(recipe, 3), recipe)
    assert isinstance(trainable.model, AdaFilterNet) and trainable.model.batchnorm == "shared"
    export_model(tmp_path, trainable, classes=list("abc"), preprocess=PREPROCESS)
    model, _ = load(tmp_path)
    assert isinstance(model, AdaFilterNet) and model.batchnorm == "shared"
    assert not model.gate.settings.recurrent
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(model(x), trainable.model.eval()(x))


def test_a_branch_of_its_own_is_asked_for_and_there_is_none() -> None:
    words = ["recipe=demo", "method=adafilter", "method.shared_batchnorm=true"]
    with pytest.raises(UserError, match="use fixed_statistics=none or both"):
        load_recipe([*words, "method.fixed_statistics=frozen"])


def test_without_a_state_a_layer_decides_by_its_own_input_alone() -> None:
    settings = Gate(hidden=12, recurrent=False, decision="filter")
    gate = RecurrentGate(LAYERS, settings, generator=torch.Generator().manual_seed(3)).double()
    gate.eval()
    drawn = torch.Generator().manual_seed(5)
    x = [torch.randn(7, c, 5, 4, generator=drawn, dtype=torch.float64) for _, c, _ in LAYERS]
    gate.start()
    for index, pictures in enumerate(x):
        gate(index, pictures)

    # One step of an LSTM from nothing: its forget gate has nothing to keep.
    for index, pictures in enumerate(x):
        mean = pictures.mean((2, 3))
        deviation = (mean.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        u = gate.inputs[index]((mean - mean.mean(1, keepdim=True)) / deviation)
        z = u @ gate.cell.weight_ih.T + gate.cell.bias_ih + gate.cell.bias_hh
        i, _, g, o = z.chunk(4, 1)
        h = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
        torch.testing.assert_close(gate.decisions.logits[index], gate.outputs[index](h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gate_for_inference_has_no_state_either(dtype: torch.dtype) -> None:
    """In float32 it is the step in C."""
    settings = Gate(hidden=12, recurrent=False, decision="filter")
    gate = RecurrentGate(LAYERS, settings, generator=torch.Generator().manual_seed(3))
    gate = gate.to(dtype).eval()
    lean = InferenceGate(gate)
    drawn = torch.Generator().manual_seed(5)
    gate.start(), lean.start()
    with torch.no_grad():
        for index, (_, c, _) in enumerate(LAYERS):
            x = torch.randn(2, c, 5, 4, generator=drawn, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            gate(index, x), lean(index, x)
            torch.testing.assert_close(
                lean.decisions.logits[index], gate.decisions.logits[index], rtol=1e-4, atol=1e-5
            )
