"""Training pictures drawn by the seed of a run: one folder, one validation and test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import Prepared, SplitName, open_prepared
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.recipe.schema import Recipe
from tests.data import trees
from tests.data.prepare.test_prepare import identity, prepared, recipe, refused

COUNTS = {"owl": 20, "tit": 14, "wren": 12}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return trees.folders(tmp_path / "birds", COUNTS)


def drawn(root: Path, seed: int, **keys: Any) -> Prepared:
    keys = {"test_per_class": 2, "draw": "seed", **keys}
    wanted = recipe(root, **keys)
    return open_prepared(Recipe.model_validate(wanted.model_dump() | {"seed": seed}))


def records(done: Prepared, split: SplitName) -> set[int]:
    return set(done.split(split)[1].tolist())


def test_each_seed_draws_others_from_one_folder(birds: Path) -> None:
    keys = {"test_per_class": 2, "draw": "seed"}
    first, _ = prepared(birds, **keys, train_per_class=5)
    whole, said = prepared(birds, **keys, train_per_class=10)
    # As many labels as one likes, and nothing stored again; also without a limit.
    assert "already prepared" in said and identity(whole) == identity(first)
    assert prepared(birds, test_per_class=2)[0].folder == first.folder
    assert len(first.train_labels) == 18 + 12 + 10
    seen: list[set[int]] = []
    for seed in range(4):
        done = drawn(birds, seed, train_per_class=5, val_fraction=0.2)
        assert done.folder == first.folder
        for split, count in (("train", 4), ("val", 1), ("test", 2)):
            assert np.bincount(done.split(split)[2]).tolist() == [count] * 3  # type: ignore[arg-type]
        assert records(done, "val") == records(drawn(birds, 0, train_per_class=5), "val")
        assert not records(done, "train") & records(done, "val")
        again = drawn(birds, seed, train_per_class=5, val_fraction=0.2)
        assert records(again, "train") == records(done, "train") not in seen
        seen.append(records(done, "train"))
    # Over the seeds every picture has its turn, but for those of validation.
    many = [drawn(birds, seed, train_per_class=5, val_fraction=0.2) for seed in range(40)]
    turns = set().union(*(records(done, "train") for done in many))
    assert turns == set(range(40)) - records(many[0], "val")


def test_label_fractions_are_stratified_and_drawn_by_the_seed(birds: Path) -> None:
    prepared(birds, test_per_class=2)
    parts = []
    for seed in range(3):
        done = drawn(birds, seed, label_fraction=0.5, val_fraction=0.2)
        whole = drawn(birds, seed, val_fraction=0.2)
        assert np.bincount(whole.split("train")[2]).tolist() == [14, 10, 8]
        assert np.bincount(done.split("train")[2]).tolist() == [7, 5, 4]
        assert records(done, "train") < records(whole, "train")
        assert records(done, "val") == records(whole, "val")
        parts.append(records(done, "train"))
    assert len(set(map(frozenset, parts))) == 3
    # Both limits: half of the labels of five pictures a class, one of which is for validation.
    both = drawn(birds, 1, train_per_class=5, label_fraction=0.5, val_fraction=0.2)
    assert np.bincount(both.split("train")[2]).tolist() == [2] * 3


def test_without_it_the_seed_of_a_run_draws_nothing(birds: Path) -> None:
    keys: dict[str, Any] = {"draw": "split_seed", "train_per_class": 5, "label_fraction": 0.5}
    prepared(birds, test_per_class=2, train_per_class=5)
    for split in ("train", "val", "test"):
        one, two = (drawn(birds, seed, **keys).split(split)[1] for seed in (0, 7))  # type: ignore[arg-type]
        assert one.tolist() == two.tolist()
    words = ["recipe=caltech256-30"]
    assert run_hash(load_recipe(words)) == run_hash(load_recipe([*words, "data.draw=split_seed"]))
    assert run_hash(load_recipe(words)) != run_hash(load_recipe([*words, "data.draw=seed"]))


def test_a_validation_split_of_the_datas_own_stays(tmp_path: Path) -> None:
    counts = {"train/a": 6, "train/b": 5, "val/a": 2, "val/b": 1, "test/a": 1, "test/b": 1}
    root = trees.folders(tmp_path, counts)
    prepared(root, draw="seed", train_per_class=3)
    parts = []
    for seed in range(4):
        done = drawn(root, seed, train_per_class=3, test_per_class=None)
        assert records(done, "val") == {11, 12, 13}
        assert np.bincount(done.split("train")[2]).tolist() == [3, 3]
        assert max(records(done, "train")) < 11
        parts.append(frozenset(records(done, "train")))
    assert len(set(parts)) > 1


def test_too_few_to_draw_from(birds: Path) -> None:
    line = "data.train_per_class=11: class 'wren' has only 10 pictures"
    assert line in refused(birds, test_per_class=2, draw="seed", train_per_class=11)
    prepared(birds, test_per_class=2)
    with pytest.raises(UserError, match=line):
        drawn(birds, 0, train_per_class=11)
    with pytest.raises(UserError, match=r"draw=seed is not for data\.name=mixed_domains"):
        load_recipe(["recipe=control/mixed-domains", "data.draw=seed"])


def test_prepare_says_what_the_seed_draws(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=imagefolder", f"data.root={birds}", "data.draw=seed", "data.stored_size=32"]
    words += ["data.train_per_class=5", "data.test_per_class=2", "seed=3", "model.weights=null"]
    assert main(["prepare", *words, "data.val_fraction=0.2"]) == 0
    assert (
        "data.draw=seed: seed=3 draws 12 training pictures, other seeds draw others from the same "
        "folder; 3 validation pictures and the test split stay"
    ) in capsys.readouterr().out
