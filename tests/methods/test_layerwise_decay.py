"""Layer-wise rates: the formula, and timm's own depths."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from adafilter_dist.methods import TrainableModel
from adafilter_dist.methods.layerwise_decay import depths
from tests.methods.test_methods import build


def rates(trainable: TrainableModel) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {id(p): name for name, p in trainable.model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in trainable.groups
        for p in group["params"]
    }


def test_rates_are_the_formula() -> None:
    """resnet18: the stem is at depth 0, its eight blocks at 1 to 8, the head at 9."""
    trainable, _ = build({"name": "layerwise_decay", "decay": 0.5}, "resnet18")
    found = rates(trainable)
    for name, parameter in trainable.model.named_parameters():
        stage, _, rest = name.removeprefix("layer").partition(".")
        level = 2 * int(stage) - 1 + int(rest[0]) if stage.isdigit() else 0
        rate = 0.3 if name.startswith("fc.") else 0.1 * 0.5 ** (9 - level)
        assert found[name] == (pytest.approx(rate), 0.01 if parameter.ndim > 1 else 0.0), name
    assert len({group["name"] for group in trainable.groups}) == len(trainable.groups) == 20
    torch.optim.SGD(trainable.groups, momentum=0.9)


def test_frozen_layers_have_no_rate_and_the_others_keep_theirs() -> None:
    words: dict[str, Any] = {"name": "layerwise_decay"}
    every = rates(build(words)[0])
    few = rates(build(words | {"layers": "layer4"}, ungated="freeze")[0])
    assert few == {n: rate for n, rate in every.items() if n.startswith(("layer4.", "fc."))}


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])
def test_depths_are_timms(name: str) -> None:
    model = timm.create_model(name, pretrained=False)
    mine = depths(model, model.pretrained_cfg["classifier"])
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    theirs = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    deepest = max(mine.values())
    for key, parameter in model.named_parameters():
        assert 0.5 ** (deepest - mine[key]) == theirs[id(parameter)], key


def test_depths_of_other_networks() -> None:
    from torchvision import models

    model = models.efficientnet_b0()
    level = depths(model, "classifier.1")
    assert level["features.0.0.weight"] == level["features.0.1.bias"] == 0
    blocks = 16  # with the last convolution and the head behind
    assert level["features.8.1.weight"] == blocks + 1 and level["classifier.1.bias"] == blocks + 2
    assert level.keys() == {name for name, _ in model.named_parameters()}
