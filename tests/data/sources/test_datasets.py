from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from torchvision.datasets import Caltech256, Food101

from tests.data import trees
from tests.data.listings import listed, names, per_class, refused


def test_food101_is_what_torchvision_lists(tmp_path: Path) -> None:
    root = trees.food101(tmp_path)
    listing = listed("food101", root)
    assert listing.classes == ["apple_pie", "baby_back_ribs", "baklava"]
    for split, ours in (("train", listing.train), ("test", listing.test)):
        theirs = Food101(root, split=split, loader=str)
        assert sorted((str(s.path), s.label) for s in ours) == sorted(theirs)
        assert all(s.path.is_file() and s.path == listing.root / s.name for s in ours)
    assert listing.notes == [
        "this is not the full Food-101: 3 of 101 classes, 12 of 75750 training and 6 of 25250 test "
        "pictures"
    ]


def test_food101_root_may_be_the_folder_itself_under_any_name(tmp_path: Path) -> None:
    root = trees.food101(tmp_path)
    expected = names(listed("food101", root).train)
    assert names(listed("food101", root / "food-101").train) == expected
    (root / "food-101").rename(root / "food")
    renamed = listed("food101", root / "food")
    assert names(renamed.train) == expected
    assert all(sample.path.is_file() for sample in renamed.train)


def test_food101_missing_or_broken_says_where_and_what(tmp_path: Path) -> None:
    message = refused("food101", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message and "food-101.tar.gz" in message
    assert "data.download=true" in message
    assert not (tmp_path / "nowhere").exists()
    root = trees.food101(tmp_path)
    meta = root / "food-101" / "meta"
    (meta / "test.json").write_text(json.dumps({"pizza": ["pizza/1"]}))
    assert "different classes" in refused("food101", root)
    (meta / "test.json").write_text("{")
    assert "test.json" in refused("food101", root)
    (meta / "test.json").unlink()
    assert "test.json: No such file" in refused("food101", root)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("null", "names no classes"),
        ("{}", "names no classes"),
        ('["pie/1"]', "names no classes"),
        ("[" * 100_000, "too many brackets in each other"),
        ('{"pie": ["pie/1"], "pie": ["pie/2"]}', "pie is in it twice"),
        ('{"pie": 5}', "no list of pictures of pie"),
        ('{"pie": "pie/1"}', "no list of pictures of pie"),
        ('{"pie": [7]}', "7 is no picture of pie"),
        ('{"pie": ["tea/1"]}', "tea/1 is no picture of pie"),
        ('{"pie": ["pie/"]}', "pie/ is no picture of pie"),
        ('{"pie": ["pie/../tea/1"]}', "pie/../tea/1 is no picture of pie"),
        ('{"pie": ["pie/1\\u0000"]}', "pie/1\\x00 is no picture of pie"),
        ('{"pie": ["pie/\\ud800"]}', "pie/\\ud800 is no picture of pie"),
        ('{"pie": ["pie/1", "pie/2", "pie/1"]}', "pie/1 is in it twice"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_food101_lists_that_are_not_as_published_are_refused(
    tmp_path: Path, split: str, content: str, what: str
) -> None:
    root = trees.food101(tmp_path, classes=1, train=1, test=1)
    path = root / "food-101" / "meta" / f"{split}.json"
    path.write_text(content)
    (line,) = refused("food101", root).splitlines()
    assert line.startswith(f"{path}: {what}; expected it as published, ")
    assert line.endswith("unpack food-101.tar.gz again")


def test_caltech256_is_what_torchvision_lists_where_it_can(tmp_path: Path) -> None:
    # Classes numbered from 1 without a gap, as torchvision needs them.
    root = trees.caltech256(tmp_path, {"001.ak47": 3, "002.american-flag": 4})
    theirs = Caltech256(str(root))
    files = sorted(
        (f"{theirs.categories[y]}/{y + 1:03d}_{i:04d}.jpg", y)
        for y, i in zip(theirs.y, theirs.index, strict=True)
    )
    ours = listed("caltech256", root)
    assert sorted((s.name, s.label) for s in (*ours.train, *ours.test)) == files


def test_caltech256_leaves_out_clutter_and_survives_stray_files(tmp_path: Path) -> None:
    root = trees.caltech256(tmp_path)
    base = root / "caltech256" / "256_ObjectCategories"
    (base / ".DS_Store").write_bytes(b"x")
    (base / "001.ak47" / "._001_0001.jpg").write_bytes(b"resource fork")
    listing = listed("caltech256", root)
    assert listing.classes == ["001.ak47", "056.dog", "198.spider"]
    assert per_class(listing.train) == [8, 9, 10]
    assert per_class(listing.test) == [2, 2, 2]
    both = names(listing.train) | names(listing.test)
    assert len(both) == 33
    assert all(Path(name).suffix == ".jpg" and "greg" not in name for name in both)
    assert "3 of 256 classes, 33 of 29780 pictures" in listing.notes[0]
    for place in (root / "caltech256", base):
        assert names(listed("caltech256", place).test) == names(listing.test)


def test_caltech256_30_and_60_are_drawn_with_one_test_set(tmp_path: Path) -> None:
    # The paper's 30, 60 and 20 a class, in small: 3, 6 and 2.
    root = trees.caltech256(tmp_path)
    small = listed("caltech256", root, train_per_class=3, test_per_class=2)
    large = listed("caltech256", root, train_per_class=6, test_per_class=2)
    assert per_class(small.train) == [3] * 3 and per_class(large.train) == [6] * 3
    assert per_class(small.test) == [2] * 3
    assert names(small.test) == names(large.test)
    assert names(small.train) < names(large.train)
    assert not names(large.train) & names(large.test)
    again = listed("caltech256", root, train_per_class=3, test_per_class=2, split_seed=1)
    assert names(again.test) != names(small.test)
    message = refused("caltech256", root, train_per_class=9, test_per_class=2)
    assert "data.train_per_class=9: class '001.ak47' has only 8 pictures" in message


def test_caltech256_missing_says_where_and_what(tmp_path: Path) -> None:
    message = refused("caltech256", tmp_path / "nowhere")
    assert "256_ObjectCategories.tar" in message and str(tmp_path / "nowhere") in message
    assert not (tmp_path / "nowhere").exists()


def test_folder_with_published_splits(tmp_path: Path) -> None:
    counts = {"train/cat": 3, "train/dog": 4, "test/cat": 1, "test/dog": 2}
    listing = listed("imagefolder", trees.folders(tmp_path, counts))
    assert listing.classes == ["cat", "dog"]
    assert (per_class(listing.train), per_class(listing.test)) == ([3, 4], [1, 2])
    assert listing.train[0].name == "train/cat/000.jpg"


def test_folder_without_splits_is_cut_by_class(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"cat": 10, "dog/deep": 20, "adafilter-0123abcd": 1})
    (root / ".cache").mkdir()
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "cat" / "CAPITALS.JPG").write_bytes(b"x")
    listing = listed("imagefolder", root, test_fraction=0.3)
    assert listing.classes == ["cat", "dog"]
    assert (per_class(listing.train), per_class(listing.test)) == ([8, 14], [3, 6])
    assert not names(listing.train) & names(listing.test)
    assert "cat/CAPITALS.JPG" in names(listing.train) | names(listing.test)
    assert "dog/deep/000.jpg" in names(listing.train) | names(listing.test)
    assert ["Thumbs.db" in note for note in listing.notes] == [True]


def test_folder_errors_name_the_place(tmp_path: Path) -> None:
    assert "data.root is not set" in refused("imagefolder", None)
    assert "no such folder" in refused("imagefolder", tmp_path / "nowhere")
    assert "no class folders" in refused("imagefolder", tmp_path)
    one = trees.folders(tmp_path / "one", {"cat": 2})
    assert "only one class (cat)" in refused("imagefolder", one)
    (one / "dog").mkdir()
    message = refused("imagefolder", one)
    assert str(one / "dog") in message and "no pictures" in message
    extra = {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/emu": 1}
    message = refused("imagefolder", trees.folders(tmp_path / "extra", extra))
    assert "test/emu" in message and "no folder in train/" in message
    assert "no test pictures" in refused(
        "imagefolder", trees.folders(tmp_path / "few", {"cat": 1, "dog": 1})
    )


def test_classes_can_be_chosen(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"cat": 5, "dog": 5, "emu": 5})
    listing = listed("imagefolder", root, classes=["emu", "cat"])
    assert listing.classes == ["cat", "emu"]
    assert {(s.name[:3], s.label) for s in listing.train} == {("cat", 0), ("emu", 1)}
    assert "no class 'dgo' (did you mean 'dog'?)" in refused(
        "imagefolder", root, classes=["cat", "dgo"]
    )
    assert "only one class" in refused("imagefolder", root, classes=["cat"])


def test_order_depends_on_names_alone(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"train/a": 5, "train/b": 5, "test/a": 1, "test/b": 1})
    first = listed("imagefolder", root)
    # A list in another order gives the same order of pictures.
    rows = [(s.name, first.classes[s.label], "train") for s in reversed(first.train)]
    rows += [(s.name, first.classes[s.label], "test") for s in first.test]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    again = listed("imagefolder", root, csv=tmp_path / "list.csv")
    assert [s.name for s in again.train] == [s.name for s in first.train]
