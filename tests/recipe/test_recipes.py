"""The shipped recipes: each loads, its header's commands are real, and it is what its name says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from adafilter_dist import __main__ as command
from adafilter_dist.data.sources import decathlon, fgvc_aircraft, indoor67, stanford_dogs
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
}
PAPER = sorted(SHIPPED - {"demo", "food101-sparse", "omniglot", "control/mixed-domains"})
# Few pictures: global batches of 64, about 5,000 steps.
SMALL = {"stanford-dogs", "fgvc-aircraft", "indoor67", "ucf101", "omniglot"}


def header_commands(path: Path) -> list[list[str]]:
    """The command lines in the comment at the top of a recipe, as words after the verb."""
    lines = [line[1:].strip() for line in path.read_text().split("\nname:")[0].splitlines()]
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
    assert {"prepare", "train", "evaluate"} <= {verb for verb, *_ in commands}
    for verb, *words in commands:
        assert verb in command.VERBS
        assert f"recipe={name}" in words
        load_recipe(words)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_name_and_sharing(name: str) -> None:
    recipe = load_recipe([f"recipe={name}"])
    assert recipe.name == Path(name).name
    # A job of two nodes of eight GPUs; others are for two CPU cores, an image folder may be small.
    small = {"demo": 2, "imagefolder": 4, "control/mixed-domains": 1} | dict.fromkeys(SMALL, 4)
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
