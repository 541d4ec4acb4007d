"""Which layers baselines train: those that AdaFilter trains with the same words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.identity import run_hash
from tests.methods.test_methods import build

SOME = r"layer[34].*conv|downsample"


def trained(trainable: TrainableModel) -> set[str]:
    return {name for name, p in trainable.model.named_parameters() if p.requires_grad}


def in_the_source(net: AdaFilterNet) -> set[str]:
    """Names of what AdaFilter trains as the source network has them, without what it adds."""
    places = {}
    for layer in net.report.gated:
        places[f"backbone.{layer.name}.conv"] = layer.name
        places[f"backbone.{layer.name}.bn1"] = layer.batchnorm
    added = [f"backbone.{layer.name}.bn2" for layer in net.report.gated] + ["gate"]
    names = set()
    for name, parameter in net.named_parameters():
        module, _, kind = name.rpartition(".")
        if parameter.requires_grad and not name.startswith(tuple(f"{each}." for each in added)):
            names.add(f"{places.get(module, module.removeprefix('backbone.'))}.{kind}")
    return names


@pytest.mark.parametrize("ungated", ["train", "freeze"])
@pytest.mark.parametrize(
    ("network", "layers"),
    [("resnet18", SOME), ("resnet18", ".*"), ("mobilenet_v3_small", "9")],
)
def test_the_same_words_train_the_same(network: str, layers: str, ungated: str) -> None:
    gated, _ = build({"name": "adafilter", "layers": layers}, network, ungated=ungated)
    tuned, _ = build({"name": "finetune", "layers": layers}, network, ungated=ungated)
    assert isinstance(gated.model, AdaFilterNet)
    assert trained(tuned) == in_the_source(gated.model)
    everything = {name for name, _ in tuned.model.named_parameters()}
    few = ungated == "freeze" and (layers != ".*" or network != "resnet18")
    assert (trained(tuned) < everything) == few


@pytest.mark.parametrize(
    "method", ["l2sp", "layerwise_decay", "lp_ft", "bss", "stochnorm", "spd", "delta", "bi_tuning"]
)
def test_other_methods_train_what_fine_tuning_does(method: str) -> None:
    words = {"layers": r"blocks\.[12]\.second"}
    tuned, _ = build({"name": "finetune", **words}, "small_resnet", ungated="freeze")
    other, _ = build({"name": method, **words}, "small_resnet", ungated="freeze")
    names = {name.removeprefix("query.backbone.") for name in trained(other)}
    added = {name for name in names if name.startswith("query.")}  # projections of Bi-Tuning
    assert names - added == trained(tuned) and len(trained(tuned)) == 8


def test_what_is_frozen_keeps_its_bits_over_a_step() -> None:
    trainable, _ = build({"name": "finetune", "layers": SOME}, "resnet18", ungated="freeze")
    model = trainable.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(trainable.groups, momentum=0.9)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()
    step_statistics.update_statistics(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    layers = ("layer3.", "layer4.", "fc.", "layer2.0.downsample.")
    assert changed == {name for name in before if name.startswith(layers)}


def test_null_trains_all_as_runs_did_before_the_key() -> None:
    trainable, _ = build({"name": "finetune", "layers": None}, ungated="freeze")
    assert all(p.requires_grad for p in trainable.model.parameters())
    trainable.model.train()(torch.randn(2, 3, 32, 32))
    step_statistics.update_statistics(trainable.model)
    assert int(trainable.model.get_buffer("bn1.num_batches_tracked")) == 1


@pytest.mark.parametrize("ungated", ["train", "freeze"])
def test_what_matches_nothing_names_the_nearest(ungated: str) -> None:
    with pytest.raises(
        UserError, match=r"^method=finetune with .*did you mean 'layer4'\?"
    ) as caught:
        build({"name": "finetune", "layers": "^layer5$"}, ungated=ungated)
    assert "\n" not in str(caught.value)


def test_a_method_over_a_recipe_keeps_its_layers() -> None:
    mine = load_recipe(["recipe=demo", "method=finetune"]).method
    assert mine.layers == load_recipe(["recipe=demo"]).method.layers != ".*"


def test_layers_are_part_of_the_hash_where_they_say_what_is_frozen() -> None:
    def name(*words: str) -> str:
        return run_hash(load_recipe(["recipe=food101", *words]))

    assert name("method=finetune") == name("method=finetune", "method.layers=layer4") == "c5c231de"
    freeze = ("method=finetune", "model.ungated=freeze")
    words = ["method.layers=null", "method.layers=.*", "method.layers=layer4"]
    assert len({name(*freeze, word) for word in words}) == 3
    probe = ("method=linear_probe", "model.ungated=freeze")
    assert name(*probe) == name(*probe, "method.layers=layer4")
