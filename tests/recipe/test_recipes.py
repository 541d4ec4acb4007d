"""The shipped recipes: each loads, its header's commands are real, and it is what its name says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from adafilter_dist import __main__ as command
from adafilter_dist.compare.request import read_request
from adafilter_dist.data.sources import (
    caltech256,
    decathlon,
    fgvc_aircraft,
    food101,
    indoor67,
    stanford_dogs,
)
from adafilter_dist.data.stored.manifest import settings_of
from adafilter_dist.recipe import Recipe, find_recipe, load_recipe, recipe_names
from adafilter_dist.recipe.sections.data import Augment
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.recipe.sections.model import AdaFilter

SHIPPED = {
    "demo",
    "food101",
    "food101-sparse",
    "food101-deepspeed",
    "caltech256",
    "caltech256-30",
    "caltech256-60",
    "stanford-dogs",
    "fgvc-aircraft",
    "indoor67",
    "ucf101",
    "omniglot",
    "imagefolder",
    "control/mixed-domains",
    "paper/protocol",
    "paper/modern",
    "compared/fashion-mnist-20",
    "compared/fashion-mnist-100",
    "compared/clipart-10",
}
COMPARED = {name for name in SHIPPED if name.startswith("compared/")}
PAPER = sorted(SHIPPED - COMPARED - {"demo", "food101-sparse", "omniglot", "control/mixed-domains"})
# Few pictures: global batches of 64, about 5,000 steps.
SMALL = {"stanford-dogs", "fgvc-aircraft", "indoor67", "ucf101", "omniglot"}


def header_commands(path: Path) -> list[list[str]]:
    """The command lines in the comment at the top of a recipe, as words after the verb."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found = re.findall(r"^(?:adafilter|torchrun .* -m adafilter_dist) (.+)$", text, re.MULTILINE)
    return [shlex.split(words, comments=True) for words in found]


def gates(recipe: Recipe) -> AdaFilter:
    assert isinstance(recipe.method, AdaFilter)
    return recipe.method


def test_these_are_shipped() -> None:
    assert set(recipe_names()) == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_header_holds_commands_that_work(name: str) -> None:
    path = find_recipe(name)
    commands = header_commands(path)
    expected = {"compare"} if name in COMPARED else {"prepare", "train", "evaluate"}
    assert expected <= {verb for verb, *_ in commands}
    for verb, *words in commands:
        assert verb in command.VERBS
        assert f"recipe={name}" in words
        words = [word for word in words if word != "--dry-run"]
        if verb == "compare":
            read_request(words)
        else:
            load_recipe(words)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_name_and_sharing(name: str) -> None:
    recipe = load_recipe([f"recipe={name}"])
    # Those of the folder paper stand over the recipe of a data set.
    assert recipe.name == ("caltech256-30" if name.startswith("paper/") else Path(name).name)
    # A job of two nodes of eight GPUs; others are for two CPU cores, an image folder may be small.
    small = {"demo": 2, "imagefolder": 4, "control/mixed-domains": 1, "paper/protocol": 1}
    small |= dict.fromkeys((*SMALL, "paper/modern"), 4) | dict.fromkeys(COMPARED, 1)
    assert recipe.train.micro_batches == small.get(name, 16)


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_crop_and_flip_alone_and_leave_the_gates_free(name: str) -> None:
    recipe = load_recipe([f"recipe={name}"])
    assert recipe.augment == Augment()
    assert (recipe.augment.policy, recipe.augment.mixup, recipe.augment.cutmix) == ("none", 0, 0)
    assert gates(recipe).sparsity.kind == "none"
    assert recipe.optim.label_smoothing == 0
    assert recipe.ema.decay == 0


@pytest.mark.parametrize("name", sorted(SMALL))
def test_recipes_of_small_sets_are_about_5000_steps(name: str) -> None:
    recipe = load_recipe([f"recipe={name}"])
    published = {
        "stanford_dogs": stanford_dogs.PUBLISHED,
        "fgvc_aircraft": fgvc_aircraft.PUBLISHED,
        "indoor67": indoor67.PUBLISHED,
        **decathlon.PUBLISHED,
    }[recipe.data.name]
    pictures = published.train + (published.validation if recipe.data.join_validation else 0)
    steps = int(pictures * (1 - recipe.data.val_fraction)) // recipe.train.global_batch
    assert recipe.train.epochs * steps == pytest.approx(5000, rel=0.02)
    header = find_recipe(name).read_text()
    for count in (pictures, published.test, published.classes):
        assert f"{count:,} " in header.splitlines()[0] + header.splitlines()[1]
    assert re.search(r"^# Source: (.*http|the Visual Decathlon)", header, re.MULTILINE)
    assert "# Licence: " in header
    assert "This recipe has not been run" in re.sub(r"\n# ", " ", header)


OVER = ["caltech256-30", "caltech256-60", "food101", *sorted(SMALL)]


@pytest.mark.parametrize("name", OVER)
@pytest.mark.parametrize("protocol", ["paper/protocol", "paper/modern"])
def test_protocols_change_the_training_and_not_the_data(protocol: str, name: str) -> None:
    data = load_recipe([f"recipe={name}"])
    words = [f"recipe={protocol}", f"over={name}", "method=finetune"]
    recipe, default = load_recipe(words), load_recipe([words[0], words[2]])
    assert settings_of(recipe.data) == settings_of(data.data) and recipe.name == name
    length = {"epochs": default.train.epochs}
    assert recipe.optim == default.optim
    assert recipe.train.model_copy(update=length) == default.train
    assert recipe.optim.name == "sgd" and recipe.optim.momentum == 0.9
    assert recipe.optim.lr_head is recipe.optim.lr_gate is None
    assert recipe.train.global_batch == 64
    if protocol == "paper/protocol":
        assert f"over={name} " in header_text(protocol) or f"{name}," in header_text(protocol)
        assert (recipe.optim.lr, recipe.optim.weight_decay) == (0.01, 5e-4)
        assert (recipe.train.epochs, recipe.optim.step_epochs) == (110, [30, 60, 90])
        assert recipe.augment == Augment()
        assert (recipe.data.resolution, recipe.data.eval_resize) == (224, 256)


def header_text(name: str) -> str:
    lines = find_recipe(name).read_text().splitlines()
    return " ".join(line[1:].strip() for line in lines if line.startswith("#"))


def test_the_modern_protocol_says_how_long_5000_steps_are() -> None:
    own = load_recipe(["recipe=paper/modern"]).train.epochs
    pairs = {n: load_recipe(["recipe=paper/modern", f"over={n}"]).train.epochs for n in OVER}
    assert pairs["caltech256-30"] == own
    words = ["recipe=paper/modern", "over=food101", "train.epochs=7"]
    assert load_recipe(words).train.epochs == 7
    classes, food = caltech256.CLASSES, food101.TRAIN
    pictures = {"caltech256-30": 27 * classes, "caltech256-60": 54 * classes, "food101": food * 0.9}
    for name, epochs in pairs.items():
        if name in SMALL:  # these are as long themselves
            assert load_recipe([f"recipe={name}"]).train.epochs == int(epochs)
        else:
            steps = pictures[name] // 64 * int(epochs)
            assert steps == pytest.approx(5000, rel=0.07), name


def test_food101_deepspeed_differs_from_food101_by_the_engine_alone() -> None:
    plain, zero = (load_recipe([f"recipe={name}"]) for name in ("food101", "food101-deepspeed"))
    assert zero.engine == DeepSpeed(zero_stage=2)
    assert zero.model_copy(update={"name": plain.name, "engine": plain.engine}) == plain


def test_food101_sparse_differs_from_food101_by_the_regulariser_alone() -> None:
    plain, sparse = (load_recipe([f"recipe={name}"]) for name in ("food101", "food101-sparse"))
    assert gates(sparse).sparsity.kind == "l1"
    assert gates(sparse).sparsity.weight > 0
    free = sparse.model_copy(update={"name": plain.name, "method": plain.method})
    assert free == plain


@pytest.mark.parametrize("count", [30, 60])
def test_caltech_draws(count: int) -> None:
    whole = load_recipe(["recipe=caltech256"])
    drawn = load_recipe([f"recipe=caltech256-{count}"])
    assert (drawn.data.train_per_class, drawn.data.test_per_class) == (count, 20)
    assert drawn.model_copy(update={"name": whole.name, "data": whole.data}) == whole
