"""The network of the positive control: its weights are in the package and do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adafilter_dist.data.sources.datasets import fetch_dataset, list_dataset
from adafilter_dist.errors import UserError
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import Backbone, fetch_weights, load_backbone
from adafilter_dist.models.backbone.preprocess import evaluation_transform
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.recipe.sections.data import Data

CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
CLOTHES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def recipe(name: str = "small_resnet", **model: Any) -> Recipe:
    data = {"name": "fashion_mnist", "stored_size": 28}
    model = {"name": name, "head": "pretrained", **model}
    return Recipe.model_validate({"name": "small", "data": data, "model": model})


def refused(classes: int | list[str], **model: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(recipe(**model), classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def accuracy(backbone: Backbone, classes: list[str]) -> float:
    """On the first 300 test pictures that are of these classes."""
    listing = list_dataset(Data(name="fashion_mnist"))
    some = [s for s in listing.test if listing.classes[s.label] in classes][:300]
    transform = evaluation_transform(backbone.preprocess)
    images = torch.stack([transform(s.pixels) for s in some if s.pixels is not None])
    labels = torch.tensor([classes.index(listing.classes[s.label]) for s in some])
    with torch.no_grad():
        return float((backbone.module.eval()(images).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module", autouse=True)
def _fetched() -> None:
    try:
        fetch_dataset(Data(name="fashion_mnist"), print)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_weights_know_their_classes_in_any_order() -> None:
    assert "found" in fetch_weights(recipe())
    for classes in (CLOTHES, sorted(CLOTHES)):
        assert accuracy(load_backbone(recipe(), classes), classes) > 0.88
    five = recipe(weights="FASHION_MNIST_FIVE")
    known = ["T-shirt/top", "Trouser", "Coat", "Sneaker", "Bag"]
    assert accuracy(load_backbone(five, known), known) > 0.96


def test_nine_convolutions_are_gated_and_the_head_is_kept() -> None:
    backbone = load_backbone(recipe(), CLOTHES)
    assert backbone.sha256.startswith("98a397fb") and backbone.preprocess.crop == 28
    kept = backbone.module.get_submodule(backbone.head)
    assert isinstance(kept, nn.Linear)
    trainable = build_method(backbone, recipe())
    assert trainable.report is not None
    assert [layer.out_channels for layer in trainable.report.gated] == [
        *(16, 16, 16),
        *(32, 32, 32),
        *(64, 64, 64),
    ]
    again = trainable.model.get_submodule(f"backbone.{backbone.head}")
    assert torch.equal(again.weight, kept.weight)  # type: ignore[arg-type]
    fresh = load_backbone(recipe(head="new"), CLOTHES).module.get_submodule(backbone.head)
    assert not torch.equal(fresh.weight, kept.weight)  # type: ignore[arg-type]
    assert run_hash(recipe(head="new")) != run_hash(recipe())


def test_a_head_of_other_classes_is_refused() -> None:
    assert refused(5) == (
        "model.head=pretrained: the weights tell 10 classes apart, the data have 5; "
        "use model.head=new"
    )
    others = [*CLOTHES[:9], "Ankle boots"]
    assert "know no class 'Ankle boots' (did you mean 'Ankle boot'?)" in refused(others)
    assert "model.weights=null has no head" in refused(CLOTHES, weights=None)
    assert "allowed: DEFAULT, FASHION_MNIST, FASHION_MNIST_FIVE" in refused(10, weights="FASHION")


def test_a_file_of_weights_gives_its_head_too(tmp_path: Path) -> None:
    state = load_backbone(recipe(), CLOTHES).module.state_dict()
    torch.save(state, tmp_path / "mine.pth")
    again = load_backbone(recipe(weights=str(tmp_path / "mine.pth")), 10).module.state_dict()
    assert torch.equal(again["head.weight"], state["head.weight"])
    assert torch.equal(again["head.bias"], state["head.bias"])
    trunk = {name: value for name, value in state.items() if not name.startswith("head")}
    torch.save(trunk, tmp_path / "trunk.pth")
    assert "the weights have no head.weight" in refused(10, weights=str(tmp_path / "trunk.pth"))
