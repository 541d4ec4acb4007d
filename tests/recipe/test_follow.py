"""Keys that follow another: a network's weights, and a warm-up shorter than its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, load_recipe, recipe_names
from adafilter_dist.recipe.identity import run_hash


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndata: {name: imagefolder, root: pictures}\n"
        "model: {name: resnet50, weights: IMAGENET1K_V2}\n"
        "optim: {warmup_epochs: 2}\ntrain: {epochs: 10}\n"
    )
    return path


def load(file: Path, *words: str) -> Recipe:
    return load_recipe([f"recipe={file}", *words])


@pytest.mark.parametrize(
    "word", ["model.name=resnet18", "model=resnet18", "model={name: resnet18}"]
)
def test_another_network_takes_its_own_default_weights(file: Path, word: str) -> None:
    assert load(file, word).model.weights == "DEFAULT"
    for words in ([word, "model.weights=IMAGENET1K_V1"], ["model.weights=IMAGENET1K_V1", word]):
        if "{" not in word or words[0] == word:
            assert load(file, *words).model.weights == "IMAGENET1K_V1"
    assert load(file, word, "model.weights=null").model.weights is None


@pytest.mark.parametrize("word", ["model.name=resnet50", "model=resnet50", "model.dropout=false"])
def test_the_same_network_keeps_its_weights(file: Path, word: str) -> None:
    assert load(file, word).model.weights == "IMAGENET1K_V2"


@pytest.mark.parametrize("weights", ["/x/mine.pth", "mine.safetensors", "null"])
def test_files_and_random_weights_belong_to_no_network(file: Path, weights: str) -> None:
    file.write_text(file.read_text().replace("IMAGENET1K_V2", weights))
    expected = None if weights == "null" else weights
    assert load(file, "model.name=resnet18").model.weights == expected


def test_a_recipe_over_a_base_is_a_layer_too(file: Path) -> None:
    child = file.with_name("child.yaml")
    child.write_text("base: mine\nname: child\nmodel: resnet18\ntrain: {epochs: 1}\n")
    recipe = load(child)
    assert (recipe.model.weights, recipe.optim.warmup_epochs) == ("DEFAULT", 0.5)
    child.write_text("base: mine\nname: child\nmodel.name: resnet18\ntrain.epochs: 1\n")
    assert load(child) == recipe


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_every_shipped_recipe_has_short_runs(name: str, epochs: int) -> None:
    recipe = load_recipe([f"recipe={name}", f"train.epochs={epochs}"])
    assert recipe.optim.warmup_epochs <= max(0.5, epochs - 1)


@pytest.mark.parametrize(
    ("words", "warmup"),
    [
        (["train.epochs=1"], 0.5),
        (["train.epochs=2"], 1),
        (["train.epochs=3"], 2),
        (["train.epochs=3", "optim.schedule_epochs=2"], 1),
        (["optim.schedule_epochs=1"], 0.5),
        (["train.epochs=1", "optim.warmup_epochs=0.25"], 0.25),
        (["train.epochs=1", "optim.warmup_epochs=0"], 0),
        (["seed=1"], 2),
    ],
)
def test_a_warm_up_is_shorter_than_its_run(file: Path, words: list[str], warmup: float) -> None:
    assert load(file, *words).optim.warmup_epochs == warmup


def test_what_is_said_together_must_go_together(file: Path) -> None:
    for words in (["train.epochs=1", "optim.warmup_epochs=1"], ["optim.warmup_epochs=10"]):
        with pytest.raises(UserError, match=r"leaves nothing of train.epochs=\d+; give less than"):
            load(file, *words)
    file.write_text(file.read_text().replace("epochs: 10", "epochs: 1"))
    with pytest.raises(UserError, match="leaves nothing of"):
        load(file)


def test_a_run_that_fits_keeps_its_identity(file: Path) -> None:
    same = load(file, "model.name=resnet50", "train.epochs=10", "optim.warmup_epochs=2")
    assert run_hash(same) == run_hash(load(file))
