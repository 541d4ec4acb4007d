"""DELTA: the penalty and the attention, computed again from their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.methods.base import Pictures, StartData
from adafilter_dist.methods.delta import attention_of, rises_without
from adafilter_dist.models.backbone.backbones import build_architecture, load_backbone
from adafilter_dist.models.backbone.feature_maps import feature_maps
from adafilter_dist.models.backbone.linear_fit import Features, fit_linear
from adafilter_dist.recipe.schema import Recipe
from tests.methods.test_methods import build

# Of the stages of small_resnet the one with the fewest filters.
MAP = "blocks.0.second.0"
STAGES = [f"layer{stage}.1.conv2" for stage in (1, 2, 3, 4)]


def noise(seed: int, n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    caught: list[Tensor] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out: caught.append(out))
        for path in STAGES
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return caught


def moved(trainable: TrainableModel) -> TrainableModel:
    """In float64, its weights away from their start, each channel with an attention of its own."""
    torch.manual_seed(1)
    trainable.model.double()
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
        for name, buffer in trainable.model.named_buffers():
            if ".attention_" in f".{name}":
                buffer.copy_(torch.rand_like(buffer))
    return trainable


def test_the_penalty_is_the_formula_and_so_is_its_gradient() -> None:
    alpha, beta = 0.3, 0.2
    trainable = moved(build({"name": "delta", "alpha": alpha, "beta": beta}, "resnet18")[0])
    start, _ = build({"name": "finetune"}, "resnet18")
    source = start.model.double().eval()
    x = noise(0, n=2)
    own = outputs(trainable.model.train(), x)
    penalty = trainable.penalty(torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        before = outputs(source, x)
    wanted = torch.zeros((), dtype=torch.float64)
    for number, (tuned, frozen) in enumerate(zip(own, before, strict=True)):
        weights = trainable.model.get_buffer(f"reference.attention_{number}")
        _, channels, height, width = tuned.shape
        for c in range(channels):
            for picture in range(2):
                distance = torch.linalg.norm(tuned[picture, c] - frozen[picture, c])
                share = channels * weights[c] * distance**2 / (height * width)
                wanted = wanted + alpha / 2 * 64 / 2 * share
    for parameter in trainable.model.get_submodule("fc").parameters():
        wanted = wanted + beta / 2 * parameter.square().sum()
    torch.testing.assert_close(penalty, wanted)
    trained = [p for p in trainable.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(penalty, trained, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(wanted, trained, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert ours[0] is not None and float(ours[0].abs().max()) > 0


def test_at_the_start_in_evaluation_mode_only_the_head_counts() -> None:
    trainable, _ = build({"name": "delta"})
    assert all(group["weight_decay"] == 0 for group in trainable.groups)
    model = trainable.model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model(noise(0).float())
    head = sum(float(p.detach().square().sum()) for p in model.get_submodule("fc").parameters())
    penalty = trainable.penalty(torch.zeros(4, dtype=torch.int64))
    assert penalty.item() == pytest.approx(0.005 * head, rel=1e-6)
    kept = {n: t.clone() for n, t in model.state_dict().items() if n.startswith("reference.")}
    penalty.backward()
    torch.optim.SGD(trainable.groups, lr=1.0).step()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())


def small() -> TrainableModel:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist"},
            "model": {"name": "small_resnet", "weights": None},
            "method": {"name": "delta", "maps": MAP},
        }
    )
    return build_method(load_backbone(recipe, 3), recipe)


def test_attention_comes_from_the_rise_of_the_loss_without_each_filter() -> None:
    """Against networks of which the filter's output is set to zero, and softmax by hand."""
    trainable = small()
    model = trainable.model.double()
    images, labels = torch.rand(70, 3, 32, 32).double(), torch.arange(70) % 3
    features = Features(torch.randn(9, model.get_submodule("head").in_features), labels[:9])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pictures, ticks = Pictures(images, labels), list[int]()
    data = StartData(features, None, 3, torch.device("cpu"), pictures, tick=lambda: ticks.append(1))
    assert trainable.start is not None and trainable.start_pictures == 128
    start = trainable.start(data)
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in before.items())
    assert model.training and len(ticks) == 2 * 16  # 64 pictures at once
    for name, attention in start.values.items():
        assert attention.shape == model.get_buffer(name).shape
        assert float(attention.sum()) == pytest.approx(1) and float(attention.std()) > 0

    # The head that the start measured with.
    weight, bias = fit_linear(features, None, 3).folded()
    model.get_submodule("head").load_state_dict({"weight": weight, "bias": bias})
    model.eval()
    convolution = model.get_submodule(MAP)
    rises = rises_without(model, MAP, pictures, lambda: None)
    assert rises.shape == (16,)
    torch.testing.assert_close(start.values["reference.attention_0"], attention_of(rises))
    for channel in (0, 3):
        mask = torch.ones(len(rises), 1, 1).double()
        mask[channel] = 0
        with torch.no_grad():
            whole = nn.functional.cross_entropy(model(images), labels)
            hook = convolution.register_forward_hook(lambda _m, _i, out, mask=mask: out * mask)
            without = nn.functional.cross_entropy(model(images), labels)
            hook.remove()
        assert float(rises[channel]) == pytest.approx(float(without - whole), abs=1e-12)


def test_maps_that_are_not_trained_are_not_measured() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist"},
            "model": {"name": "small_resnet", "weights": None, "ungated": "freeze"},
            "method": {"name": "delta", "layers": r"blocks\.[12]\.", "maps": r"second\.0"},
        }
    )
    trainable = build_method(load_backbone(recipe, 3), recipe)
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6) % 3
    features = Features(torch.randn(9, 64), labels.repeat(2)[:9])
    lines: list[str] = []
    data = StartData(
        features, None, 3, torch.device("cpu"), Pictures(images, labels), say=lines.append
    )
    assert trainable.start is not None
    before = {name: tensor.clone() for name, tensor in trainable.model.state_dict().items()}
    start = trainable.start(data)
    assert list(start.values) == ["reference.attention_1", "reference.attention_2"]
    assert "blocks.0.second.0, feature map 1 of 3, is not trained" in lines[0]
    assert all(torch.equal(trainable.model.state_dict()[n], t) for n, t in before.items())


def test_softmax_of_a_fifth_of_the_standardised_rises() -> None:
    rises = [0.0, 1.0, 5.0]
    mean, spread = 2.0, math.sqrt((4 + 1 + 9) / 3)
    powers = [math.exp((rise - mean) / spread / 5) for rise in rises]
    wanted = [power / sum(powers) for power in powers]
    torch.testing.assert_close(attention_of(torch.tensor(rises)), torch.tensor(wanted))
    assert attention_of(torch.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        ("resnet50", ["layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"]),
        (
            "mobilenet_v2",
            ["features.3.conv.2", "features.6.conv.2", "features.13.conv.2", "features.18.0"],
        ),
        ("vgg11", ["features.3", "features.8", "features.13", "features.18"]),
    ],
)
def test_the_last_convolution_of_each_stage(network: str, wanted: list[str]) -> None:
    with torch.device("meta"):
        module = build_architecture(network, 64)
    maps = feature_maps(module, torch.zeros(2, 3, 64, 64, device="meta"), None)
    assert [each.path for each in maps] == wanted
    # VGG has no BatchNorm: its activations write into the output of each convolution.
    assert {each.changed for each in maps} == {network == "vgg11"}


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^method\.maps=stage5: no convolution of resnet18 mat"):
        build({"name": "delta", "maps": "stage5"}, "resnet18")
    few, _ = build({"name": "delta", "maps": r"layer[34]\.0\.conv1"}, "resnet18")
    assert sum(name.startswith("reference.attention") for name, _ in few.model.named_buffers()) == 2
