"""Methods: what is trained, at which rate, with which decay."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from adafilter_dist.methods import TrainableModel, build_method, parameter_groups
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.recipe.schema import Recipe


def build(
    method: Any, network: str = "timm/test_resnet", **model: Any
) -> tuple[TrainableModel, Recipe]:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist", "resolution": 32},
            "model": {"name": network, "weights": None, **model},
            "method": method,
            "optim": {"lr": 0.1, "lr_gate": 0.2, "lr_head": 0.3, "weight_decay": 0.01},
        }
    )
    return build_method(load_backbone(recipe, 5), recipe), recipe


def names_of(trainable: TrainableModel) -> dict[str, list[str]]:
    names = {id(parameter): name for name, parameter in trainable.model.named_parameters()}
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in trainable.groups}


@pytest.mark.parametrize(
    "method",
    [
        *("adafilter", "finetune", "finetune_last", "l2sp", "linear_probe"),
        *("lp_ft", "bss", "stochnorm", "spd", "auto_rgn", "delta"),
    ],
)
def test_groups_hold_what_is_trained_exactly_once(method: str) -> None:
    trainable, _ = build({"name": method})
    grouped = [id(parameter) for group in trainable.groups for parameter in group["params"]]
    trained = [id(p) for p in trainable.model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(trained)
    torch.optim.SGD(trainable.groups, momentum=0.9)
    for group in trainable.groups:
        name = re.sub(r"_\d+$", "", group["name"])  # one of several of a kind
        part = name.removesuffix("_no_decay")
        assert group["lr"] == {"trunk": 0.1, "gate": 0.2, "head": 0.3}[part]
        still = name.endswith("_no_decay")
        assert group["weight_decay"] == (0.0 if still or method in ("l2sp", "delta") else 0.01)
        assert all((parameter.ndim <= 1) == still for parameter in group["params"])
    assert trainable.num_classes == 5


def test_parts_are_told_apart() -> None:
    trainable, _ = build({"name": "adafilter"})
    names = names_of(trainable)
    assert names["head"] == ["backbone.fc.weight"]
    assert names["head_no_decay"] == ["backbone.fc.bias"]
    assert all(name.startswith("gate.") for name in names["gate"] + names["gate_no_decay"])
    assert not any(name.startswith("gate.") for name in names["trunk"] + names["trunk_no_decay"])
    assert "backbone.layer1.0.conv1.bn2.bias" in names["trunk_no_decay"]
    assert names_of(build({"name": "finetune"})[0])["head"] == ["fc.weight"]


def test_rates_default_to_the_trunks_and_a_guess_of_the_head_is_not_needed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    groups = {g["name"]: g for g in parameter_groups(model, lr=0.5, head="1")}
    assert groups["head"]["params"][0] is model[1].weight and groups["head"]["lr"] == 0.5
    assert {g["name"] for g in parameter_groups(model, lr=0.5)} == {"trunk", "trunk_no_decay"}


def test_adafilter_follows_the_recipe() -> None:
    trainable, _ = build(
        {
            "name": "adafilter",
            "gate": {"hidden": 16, "estimator": "gumbel", "bias": 1.0},
            "sparsity": {"kind": "l1", "weight": 0.5},
            "layers": "layer4",
        },
        "resnet18",
        ungated="freeze",
    )
    model = trainable.model
    assert isinstance(model, AdaFilterNet) and trainable.gates is model.gate
    assert trainable.report is model.report and len(model.gated_layers) == 5
    assert model.gate.settings.estimator == "gumbel" and model.gate.cell.hidden_size == 16
    assert not model.backbone.get_parameter("conv1.weight").requires_grad
    model.train()(torch.randn(4, 3, 32, 32))
    means = torch.stack([gates.mean() for gates in model.gate.decisions.gates.values()])
    torch.testing.assert_close(
        trainable.penalty(torch.zeros(4, dtype=torch.int64)), 0.5 * means.mean()
    )


@pytest.mark.parametrize("method", ["finetune", "linear_probe"])
def test_baselines_have_no_gates_and_no_penalty(method: str) -> None:
    trainable, _ = build({"name": method})
    trainable.model(torch.randn(2, 3, 32, 32))
    assert trainable.gates is None and trainable.report is None
    penalty = trainable.penalty(torch.zeros(2, dtype=torch.int64))
    assert float(penalty) == 0 and penalty.ndim == 0


def test_finetune_uses_the_same_batchnorm() -> None:
    trainable, _ = build({"name": "finetune"}, "resnet18")
    norms = [m for m in trainable.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(isinstance(norm, MicroBatchNorm2d) for norm in norms)


def test_linear_probe_trains_the_head_on_features_of_evaluation_mode() -> None:
    trainable, _ = build({"name": "linear_probe"}, "mobilenet_v2")
    model, x = trainable.model, torch.randn(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluated = model.eval()(x)
    assert torch.equal(model.train()(x), evaluated), "no dropout, no batch statistics"
    optimizer = torch.optim.SGD(trainable.groups, lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    step_statistics.update_statistics(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"backbone.classifier.1.weight", "backbone.classifier.1.bias"}


def test_the_same_recipe_builds_the_same_bits() -> None:
    first, second = (build({"name": "adafilter"})[0].model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
