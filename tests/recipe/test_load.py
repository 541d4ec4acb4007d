"""Recipes: files, base, overrides, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import dump_recipe, find_recipe, load_recipe
from adafilter_dist.recipe.identity import run_dir, run_hash


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {name: imagefolder, root: pictures}\noptim: {lr: 0.5}\n")
    return path


def errors(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(words)
    return str(caught.value).splitlines()


def test_overrides_split_at_the_first_equals_sign(file: Path) -> None:
    recipe = load_recipe([f"recipe={file}", "model.weights=/a=b.pth", "optim.lr=1e-3"])
    assert recipe.model.weights == "/a=b.pth"
    assert recipe.optim.lr == 1e-3


def test_null_unsets_and_brackets_are_lists(file: Path) -> None:
    recipe = load_recipe(
        [f"recipe={file}", "train.clip_norm=null", "data.classes=[cat, dog]", "optim.lr_gate="]
    )
    assert recipe.train.clip_norm is None
    assert recipe.data.classes == ["cat", "dog"]
    assert recipe.optim.lr_gate is None


def test_all_mistakes_at_once_with_the_nearest_key(file: Path) -> None:
    lines = errors(f"recipe={file}", "optim.lrr=1", "train.epochs=many", "method.gate.hiden=3")
    assert len(lines) == 3
    assert any(line.startswith("optim.lrr: unknown key (did you mean 'lr'?)") for line in lines)
    assert any(line.startswith("train.epochs=many: ") for line in lines)
    assert any("method.gate.hiden: unknown key (did you mean 'hidden'?)" in line for line in lines)


def test_unknown_values_name_what_is_allowed(file: Path) -> None:
    (line,) = errors(f"recipe={file}", "optim.name=sdg")
    assert line == "optim.name=sdg: not known (did you mean 'sgd'?); allowed: sgd, adamw"
    (line,) = errors(f"recipe={file}", "method=adafliter")
    assert "did you mean 'adafilter'" in line


def test_a_checkpoint_interval_is_steps_a_duration_or_auto(file: Path) -> None:
    for text in ("500", "90s", "1.5h", "auto"):
        recipe = load_recipe([f"recipe={file}", f"checkpoint.every={text}"])
        assert str(recipe.checkpoint.every) == text
    for text in ("often", "0", "0s", "1.5", "true", "", "[10min]"):
        (line,) = errors(f"recipe={file}", f"checkpoint.every={text}")
        assert line.startswith("checkpoint.every=")
        assert ": must be a number of steps from 1, a duration like '90s'" in line
        assert line.endswith(", or 'auto'")


def test_a_duration_needs_its_unit_and_a_length(file: Path) -> None:
    (line,) = errors(f"recipe={file}", "checkpoint.mtbi=7200")
    assert line == (
        "checkpoint.mtbi=7200: '7200' is not a duration; write it like '90s', '10min' or '1.5h'"
    )
    (line,) = errors(f"recipe={file}", "checkpoint.lease=0s")
    assert line == "checkpoint.lease=0s: must be longer than 0 s"


def test_impossible_combinations(file: Path) -> None:
    (line,) = errors(f"recipe={file}", "train.global_batch=10", "train.micro_batch=4")
    assert "global_batch=10 is not a multiple of micro_batch=4" in line
    (line,) = errors(f"recipe={file}", "method.sparsity.weight=0.1")
    assert "kind is none" in line


def test_a_comma_list_is_refused_by_name(file: Path) -> None:
    (line,) = errors(f"recipe={file}", "seed=0,1,2")
    assert line.startswith("seed=0,1,2: a comma list is a sweep")


def test_unknown_recipe_names_the_nearest() -> None:
    (line,) = errors("recipe=demmo")
    assert "did you mean 'demo'" in line


def test_short_form_and_switching_the_method(file: Path) -> None:
    recipe = load_recipe([f"recipe={file}", "method.gate.hidden=8", "method=finetune"])
    assert recipe.method.name == "finetune"
    recipe = load_recipe([f"recipe={file}", "model=resnet18", "model.weights=null"])
    assert (recipe.model.name, recipe.model.weights) == ("resnet18", None)


def test_another_base_by_over(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text("base: demo\noptim: {momentum: 0.5}\ntrain: {epochs: 1}\n")
    own = load_recipe([f"recipe={child}"])
    other = load_recipe([f"recipe={child}", "over=caltech256-30", f"over={file}", "seed=3"])
    assert (own.name, other.name) == ("demo", load_recipe([f"recipe={file}"]).name)
    assert other.optim.momentum == 0.5 and other.train.epochs == 1 and other.seed == 3
    assert 0 < load_recipe([f"recipe={child}", "over=food101"]).optim.warmup_epochs < 1
    # What a recipe has for some bases.
    child.write_text(child.read_text() + "over:\n  food101: {train: {epochs: 7}}\n")
    lengths = [load_recipe([f"recipe={child}", *w]).train.epochs for w in ([], ["over=food101"])]
    assert lengths == [1, 7]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("base: demo\nover: {food101: 7}\n")
    # Named as recipe= names one: what lies beside the recipe is not looked at.
    (tmp_path / "food101.yaml").write_text("name: beside\n")
    assert load_recipe([f"recipe={child}", "over=food101"]).name == "food101"
    for words, line in (
        (["recipe=food101", "over=demo"], "over=demo: .*food101.yaml has no base:"),
        ([f"recipe={child}", "over=fod101"], r"over=fod101: no recipe of that name \(did you mean"),
        ([f"recipe={child}", f"over={child}"], "base: leads back to the recipe itself"),
        ([f"recipe={child}", "over="], "over=: which one"),
        ([f"recipe={wrong}"], "wrong.yaml: over: holds sections by name of a base, e.g."),
        ([f"recipe={child}", "over=demo,food101"], "a comma list is a sweep"),
        (["recipe=demo", "ovr=food101"], "ovr"),
    ):
        with pytest.raises(UserError, match=line):
            load_recipe(words)


def test_base_is_merged_and_loops_are_refused(tmp_path: Path, file: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("base: mine\nname: child\noptim: {momentum: 0.5}\n")
    recipe = load_recipe([f"recipe={child}"])
    assert (recipe.name, recipe.optim.lr, recipe.optim.momentum) == ("child", 0.5, 0.5)
    file.write_text("base: child\nname: mine\n")
    (line,) = errors(f"recipe={child}")
    assert "leads back" in line


def test_dump_reads_back_the_same(tmp_path: Path, file: Path) -> None:
    recipe = load_recipe([f"recipe={file}", "method.sparsity.kind=l1", "method.sparsity.weight=1"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe([f"recipe={again}"]) == recipe


def test_identity_is_of_the_numbers_only(file: Path) -> None:
    base = load_recipe([f"recipe={file}"])
    same = load_recipe(
        [f"recipe={file}", "checkpoint.every=5", "data.loader=torchvision", "log.every=1"]
    )
    other = load_recipe([f"recipe={file}", "seed=1"])
    assert run_hash(base) == run_hash(same)
    assert run_hash(base) != run_hash(other)
    assert run_dir(base) == Path("runs") / "mine" / run_hash(base)
    elsewhere = load_recipe([f"recipe={file}", "data.root=/other/pictures"])
    assert run_hash(base) != run_hash(elsewhere)  # an image folder is known by its place


def test_malformed_yaml_is_one_line(file: Path) -> None:
    file.write_text("name: [unclosed\n")
    (line,) = errors(f"recipe={file}")
    assert line.startswith(str(file)) and "not YAML" in line


def test_find_recipe_prefers_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes" / "demo.yaml"
    mine.write_text("name: demo\ndata: {name: imagefolder}\n")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo").resolve() == mine
