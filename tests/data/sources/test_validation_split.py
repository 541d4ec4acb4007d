"""A validation split of the data's own: stored, used, and told."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from adafilter_dist.__main__ import main
from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.prepare.read_pictures import stored_pixels
from adafilter_dist.data.prepare.summary import summarise
from adafilter_dist.data.stored.prepared import Prepared, open_prepared
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from tests.data import trees
from tests.distributed.launch import adafilter

COUNTS = {
    **{"train/cat": 6, "train/dog": 4},
    **{"valid/cat": 2, "valid/dog": 3},
    **{"test/cat": 1, "test/dog": 2},
}


def recipe(root: Path, **keys: Any) -> Recipe:
    data = {"name": "imagefolder", "root": root, "stored_size": 32, "num_workers": 2, **keys}
    return Recipe.model_validate({"name": "mine", "data": data})


def prepared(root: Path, **keys: Any) -> tuple[Prepared, list[str]]:
    """The prepared data and the lines that were printed."""
    text = io.StringIO()
    console = Console(file=text, width=200)
    done = prepare(recipe(root, **keys), console)
    summarise(done.folder, console)
    return done, [" ".join(line.split()) for line in text.getvalue().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folders(tmp_path / "pictures", COUNTS)


def test_it_is_stored_behind_training_and_used(root: Path) -> None:
    done, lines = prepared(root, val_fraction=0.4, stored_format="raw")
    assert (len(done.train_labels), done.validation, len(done.test_labels)) == (15, 5, 3)
    store, val, labels = done.split("val")
    assert store == done.train_store and val.tolist() == [10, 11, 12, 13, 14]
    assert np.bincount(labels).tolist() == [2, 3]
    rows = read_list(done.folder / "val.csv")
    assert [row["path"].split("/")[0] for row in rows] == ["valid"] * 5
    for i, row in zip(val, rows, strict=True):
        content = (root / row["path"]).read_bytes()
        assert (Store(store).read(i) == stored_pixels(content, 32)).all()
        assert done.classes[Store(store).labels[i]] == row["label"]
    assert done.split("train")[1].tolist() == list(range(10))
    assert len(read_list(done.folder / "train.csv")) == 10
    assert read_list(done.folder / "classes.csv")[1] == {
        **{"class": "dog", "train": "4", "val": "3", "test": "2"}
    }
    assert "val 5 in train 2 2.5 3" in lines
    assert "note: splits: train/ -> train, valid/ -> val, test/ -> test" in lines
    line = "validation: the data's own split of 5 pictures; data.val_fraction has no effect"
    assert line in lines


@pytest.mark.parametrize(
    "keys", [{"label_fraction": 0.5}, {"val_fraction": 0}, {"train_per_class": 3}]
)
def test_no_key_changes_it(root: Path, keys: dict[str, Any]) -> None:
    done, _ = prepared(root, **keys)
    _, val, labels = done.split("val")
    assert val.tolist() == list(range(len(done.train_labels) - 5, len(done.train_labels)))
    assert np.bincount(labels).tolist() == [2, 3]
    trained = {"label_fraction": [3, 2], "train_per_class": [3, 3]}.get(*keys, [6, 4])
    assert np.bincount(done.split("train")[2]).tolist() == trained


def test_fingerprint_covers_it(root: Path) -> None:
    first, _ = prepared(root)
    # Touched or copied, it is the same.
    for file in root.rglob("*.jpg"):
        os.utime(file, (5, 5))
    again, lines = prepared(root)
    assert lines[0].startswith("already prepared") and again.fingerprint == first.fingerprint
    # A picture that changes sides is not, although the store holds the same ones in the same order.
    (root / "train/dog/003.jpg").rename(root / "valid/cat/+.jpg")
    moved, lines = prepared(root)
    assert not lines[0].startswith("already prepared") and moved.validation == 6
    (root / "valid/cat/001.jpg").write_bytes((root / "test/dog/001.jpg").read_bytes())
    changed, _ = prepared(root)
    assert len({done.fingerprint for done in (first, moved, changed)}) == 3


def test_fingerprint_of_data_without_one_is_as_ever(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    done, lines = prepared(root)
    assert done.validation == 0 and "val.csv" not in os.listdir(done.folder)
    assert not any(line.startswith("validation") for line in lines)
    # A folder that was prepared before there was such a split.
    path = done.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("validation") == 0
    path.write_text(json.dumps(manifest))
    assert prepared(root)[1][0].startswith("already prepared")
    assert open_prepared(recipe(root)).validation == 0


def test_bad_and_shared_pictures_of_validation(root: Path) -> None:
    (root / "valid/cat/000.jpg").write_text("no picture")
    (root / "train/cat/002.jpg").write_text("no picture")
    shutil.copy(root / "train/dog/000.jpg", root / "valid/dog/001.jpg")
    shutil.copy(root / "test/dog/000.jpg", root / "valid/dog/002.jpg")
    done, lines = prepared(root, on_bad="skip")
    assert (len(done.train_labels), done.validation) == (13, 4)
    assert [row["split"] for row in read_list(done.folder / "skipped.csv")] == ["train", "val"]
    twins = read_list(done.folder / "val-duplicates.csv")
    assert [(row["val_path"], row["other_split"], row["other_path"]) for row in twins] == [
        ("valid/dog/001.jpg", "train", "train/dog/000.jpg"),
        ("valid/dog/002.jpg", "test", "test/dog/000.jpg"),
    ]
    assert any("2 validation pictures are in the training or the test set" in s for s in lines)
    for file in (root / "valid").rglob("*.jpg"):
        file.write_text("no picture")
    with pytest.raises(UserError, match="every validation picture is bad"):
        prepared(root, on_bad="skip")


def test_odd_file_names_are_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = Path(os.fsdecode(os.fsencode(root) + b"/valid/cat/two\nlines \xff.jpg"))
    (root / "valid/cat/000.jpg").rename(odd)
    done, _ = prepared(root)
    (name,) = (r["path"] for r in read_list(done.folder / "val.csv") if "two" in r["path"])
    assert name == "valid/cat/two\nlines \\udcff.jpg"
    assert done.validation == 5
    odd.write_text("no picture")
    words = ["prepare", "recipe=imagefolder", "model.weights=null", f"data.root={root}"]
    assert main([*words, "data.stored_size=32"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[1].startswith(f"error:   {root}/valid/cat/two\\nlines \\xff.jpg: ")


def test_prepared_with_another_test_split_is_other_data(root: Path, tmp_path: Path) -> None:
    own, _ = prepared(root)
    swapped, lines = prepared(root, test_split="val")
    assert swapped.folder != own.folder and swapped.validation == 0
    assert np.bincount(swapped.test_labels).tolist() == [2, 3]
    assert "note: splits: train/ -> train, valid/ -> val" in lines
    assert "note: data.test_split=val: the 5 pictures of val are the test split" in lines
    # Neither is taken for the other in one folder.
    prepared(root, prepared=tmp_path / "here", test_split="val")
    with pytest.raises(UserError, match=r"data\.test_split=val, now None"):
        prepared(root, prepared=tmp_path / "here")


@pytest.mark.slow
def test_training_chooses_the_best_by_it(root: Path) -> None:
    words = ["recipe=imagefolder", "model.name=resnet18", "model.weights=null", f"data.root={root}"]
    words += ["data.stored_size=32", "data.resolution=32", "data.eval_resize=32", "train.epochs=1"]
    words += ["train.global_batch=4", "train.micro_batch=2", "optim.warmup_epochs=0"]
    words += ["data.val_fraction=0", "evaluate.probe=false", "engine.threads=1", "run_dir=run"]
    prepared(root)
    for verb in (["train"], ["evaluate", "--split", "val"]):
        ended = adafilter(*verb, *words, folder=root.parent)
        assert ended.code == 0, ended.output
    lines = (root.parent / "run/metrics.jsonl").read_text().splitlines()
    (row,) = (r for r in map(json.loads, lines) if r.get("split") == "val")
    # Of the five pictures, which val_fraction=0 does not take away.
    assert row["top1"] * 5 == pytest.approx(round(row["top1"] * 5))
    evaluated = json.loads((root.parent / "run/evaluation-val.json").read_text())
    assert evaluated["evaluation"]["n"] == 5
