"""A recipe written before there was a key means what was done then, whatever the default is now."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe, recipe_names
from adafilter_dist.recipe.identity import flat, run_hash
from adafilter_dist.recipe.younger_keys import VALUE_BEFORE_KEY
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.kept_recipe import read_kept
from adafilter_dist.system.files import write_bytes
from adafilter_dist.system.sealed_files import sealed

# Written by versions that had none of the keys but method.fixed_statistics, with the run's hash in
# its name.
RESOLVED = sorted((Path(__file__).parent / "resolved").glob("*.yaml"))
BASELINES = sorted((Path(__file__).parent / "resolved" / "baselines").glob("*.yaml"))


def batchnorm(recipe: Recipe) -> str:
    kind: str = recipe.method.batchnorm  # type: ignore[union-attr]
    return kind


@pytest.mark.parametrize("path", RESOLVED, ids=lambda path: path.name)
def test_a_run_from_before_goes_on_as_it_began(path: Path, tmp_path: Path) -> None:
    written = path.read_text()
    assert "batchnorm:" not in written
    files = RunFiles(tmp_path)
    files.recipe.write_text(written)
    for sealed_too in (False, True):
        if sealed_too:
            write_bytes(files.kept_recipe, sealed({"recipes": [yaml.safe_load(written)]}))
        kept = read_kept(tmp_path)
        values = flat(kept.model_dump(mode="json"))
        assert {key: values[key] for key in VALUE_BEFORE_KEY} == VALUE_BEFORE_KEY
        assert run_hash(kept) == path.name.split(".")[-2]
    # And words on top, as `adafilter resume RUN key=value` puts them, or a recipe.
    assert batchnorm(load_recipe([f"recipe={path}", "log.every=7"])) == "all"
    child = tmp_path / "child.yaml"
    child.write_text(f"base: {path}\nname: child\n")
    assert batchnorm(load_recipe([f"recipe={child}"])) == "all"
    load_recipe([f"recipe={path}", "method=finetune"])  # which has none of the keys


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.name)
def test_a_baseline_from_before_goes_on_as_it_began(path: Path, tmp_path: Path) -> None:
    name, run, _ = path.name.split(".")
    RunFiles(tmp_path).recipe.write_text(path.read_text())
    kept = read_kept(tmp_path)
    values = flat(kept.model_dump(mode="json"))
    assert values["model.ungated"] == "freeze" and values["method.layers"] is None
    assert run_hash(kept) == run
    # Written out again it stays the same; words by hand take the default of today.
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(kept))
    assert load_recipe([f"recipe={again}"]) == kept
    today = load_recipe(["recipe=demo", f"method={name}"])
    assert today.method.layers is not None and run_hash(today) != run


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_by_hand_take_the_default(name: str, tmp_path: Path) -> None:
    recipe = load_recipe([f"recipe={name}", "method=adafilter"])
    assert batchnorm(recipe) == "selected"
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe([f"recipe={again}"]) == recipe
    everyone = load_recipe([f"recipe={name}", "method=adafilter", "method.batchnorm=all"])
    assert run_hash(everyone) != run_hash(recipe)


def test_the_papers_form_takes_statistics_of_all() -> None:
    assert batchnorm(load_recipe(["recipe=food101", "method.gate.recipe=paper"])) == "all"
    words = ["recipe=food101", "method.gate.recipe=paper", "method.batchnorm=selected"]
    with pytest.raises(UserError, match=r"gate\.recipe=paper has no batchnorm=selected"):
        load_recipe(words)
