"""Folders that mean splits: recognised, told, or refused in one line; never dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.data.sources.split_names import split_of
from tests.data import trees
from tests.data.listings import listed, names, per_class, refused


def splits(train: str, test: str, val: str | None = None) -> dict[str, int]:
    counts = {f"{train}/cat": 4, f"{train}/dog": 4, f"{test}/cat": 1, f"{test}/dog": 2}
    return counts | ({f"{val}/cat": 3, f"{val}/dog": 2} if val else {})


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [
        ("training", "testing", None),
        ("Train", "TEST", "Valid"),
        ("trn", "tst", "dev"),
        ("train_images", "test_images", "validation-set"),
        ("images/train", "images/test", "images/val"),
        ("train/images", "test/images", "val/images"),
        ("Training Set", "evaluation", "development"),
        ("train2017", "test2017", "val2017"),
        ("data/splits/train", "data/splits/eval", None),
    ],
)
def test_usual_names_of_splits(tmp_path: Path, train: str, test: str, val: str | None) -> None:
    root = trees.folders(tmp_path, splits(train, test, val))
    listing = listed("imagefolder", root)
    assert listing.classes == ["cat", "dog"]
    assert (per_class(listing.train), per_class(listing.test)) == ([4, 4], [1, 2])
    assert per_class(listing.validation) == ([3, 2] if val else [])
    assert listing.train[0].name == f"{train}/cat/000.jpg"
    (note,) = listing.notes or [""]
    for name, split in ((train, "train"), (test, "test"), (val, "val")):
        told = name and name.removesuffix("/images")
        assert note == "" or name is None or f"{told}/ -> {split}" in note
    assert note or (train, test, val) == ("train", "test", None)


def test_class_folders_in_the_only_folder(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"images/cat": 5, "images/dog": 5})
    listing = listed("imagefolder", root)
    assert listing.classes == ["cat", "dog"]
    assert listing.notes == ["the class folders are those in images/"]


def test_words_that_are_no_splits() -> None:
    for name in ("tram", "trained", "device", "contest", "valley", "tests", "test_tube", "träin"):
        assert split_of(name) is None, name


def test_validation_without_test_is_no_test_set(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"train/a": 10, "train/b": 5, "val/a": 2, "val/b": 3})
    listing = listed("imagefolder", root)
    assert per_class(listing.validation) == [2, 3]
    assert (per_class(listing.train), per_class(listing.test)) == ([8, 4], [2, 1])
    assert all(s.name.startswith("train/") for s in (*listing.train, *listing.test))
    assert listing.notes[0] == "splits: train/ -> train, val/ -> val"
    assert "data.test_split=val tests on the validation split instead" in listing.notes[1]
    as_test = listed("imagefolder", root, test_split="val")
    assert (per_class(as_test.train), per_class(as_test.test)) == ([10, 5], [2, 3])
    assert not as_test.validation


def test_test_pictures_without_labels_are_left_out_where_validation_is_the_test(
    tmp_path: Path,
) -> None:
    counts = {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "test": 4}
    root = trees.folders(tmp_path, counts)
    message = refused("imagefolder", root)
    assert "train/ and val/ with class folders, test/ with pictures alone" in message
    listing = listed("imagefolder", root, test_split="val")
    assert per_class(listing.test) == [1, 1]
    assert "test/ left out: not used as a split" in listing.notes


def test_classes_called_train_and_test(tmp_path: Path) -> None:
    root = trees.folders(tmp_path / "flat", {"bus": 5, "train": 5, "tram": 5})
    listing = listed("imagefolder", root)
    assert listing.classes == ["bus", "train", "tram"]
    assert listing.notes == ["train/ with pictures, not class folders: taken for a class"]
    # With folders inside it can be meant both ways: asked for, and told how to answer.
    deep = {"bus/red": 5, "train/steam": 5, "train/diesel": 5, "tram": 5}
    root = trees.folders(tmp_path / "deep", deep)
    message = refused("imagefolder", root)
    assert "train/ taken for a split would leave out bus/ and tram/" in message
    assert message.endswith("say so: data.classes=[train,bus,tram]")
    listing = listed("imagefolder", root, classes=["train", "bus", "tram"])
    assert listing.classes == ["bus", "train", "tram"]
    assert per_class(listing.train) == [4, 8, 4]
    # Nothing but the two: no labels, unless they are the labels.
    root = trees.folders(tmp_path / "two", {"train": 5, "test": 5})
    assert "nothing says what is on them" in refused("imagefolder", root)
    assert listed("imagefolder", root, classes=["test", "train"]).classes == ["test", "train"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"train/a": 2, "training/a": 2, "test/a": 1}, "both mean the split train"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "valid/a": 1}, "both mean the split val"),
        ({"test/a": 2, "test/b": 2, "val/a": 1}, "test/ and val/ with class folders, and no train"),
        ({"a": 3, "b": 3, "test/a": 2, "test/b": 2}, "test/ with class folders, and no train/"),
        ({"train/a": 2, "train/b": 2, "tset/a": 1}, "would leave out tset/"),
        ({"train/a": 2, "train/b": 2, "test/a": 1, "vaild/a": 1}, "would leave out vaild/"),
        ({"seg_train/a": 2, "seg_test/a": 2}, "seg_test/ and seg_train/ with folders in them"),
        ({"cat/train": 3, "cat/test": 1, "dog/train": 3, "dog/test": 1}, "would be a class"),
        ({"images/train/a": 2, "images/test/a": 1, "masks/train/a": 2}, "set data.root="),
        ({"train/a": 2, "train/b": 2, "test/a": 1, "val/c": 0}, "no pictures in val/"),
        (
            {"train/Cat": 2, "train/dog": 2, "test/cat": 1},
            "test/cat: this class has no folder in train/ (did you mean 'Cat'?)",
        ),
        ({"train/a": 2, "train/b": 2, "val/c": 1}, "val/c: this class has no folder in train/"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, counts: dict[str, int], expected: str) -> None:
    assert expected in refused("imagefolder", trees.folders(tmp_path, counts))


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, splits("train", "test") | {"extra/cat": 2, "notes": 0})
    trees.folders(root / "more", {"owl": 1})
    for place in ("train/overview.jpg", "train/second.jpg", "cover.jpg"):
        (root / place).write_bytes((root / "train/cat/000.jpg").read_bytes())
    assert listed("imagefolder", root).notes == [
        "extra/ and more/ left out: not used as a split",
        "1 picture beside the class folders left out, e.g. cover.jpg",
        "2 pictures beside the class folders left out, e.g. train/overview.jpg",
    ]


def test_classes_without_pictures_in_a_split_are_told(tmp_path: Path) -> None:
    counts = {"train/a": 2, "train/b": 2, "train/c": 2, "test/a": 1, "val/b": 1}
    listing = listed("imagefolder", trees.folders(tmp_path, counts))
    assert listing.notes[1:] == [
        "no test pictures of class 'b' and 1 more",
        "no validation pictures of class 'a' and 1 more",
    ]


def test_chosen_classes_are_the_way_on_from_empty_and_extra_ones(tmp_path: Path) -> None:
    counts = {"train/a": 2, "train/b": 2, "train/c": 0, "test/a": 1, "test/b": 1, "test/d": 1}
    root = trees.folders(tmp_path, counts)
    assert "train/c: no pictures in it" in refused("imagefolder", root)
    listing = listed("imagefolder", root, classes=["a", "b"])
    assert (per_class(listing.train), per_class(listing.test)) == ([2, 2], [1, 1])


def test_classes_of_one_word_are_told(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"Cat": 3, "cat": 3, "dog": 3})
    listing = listed("imagefolder", root)
    assert listing.classes == ["Cat", "cat", "dog"]
    assert "the classes 'Cat' and 'cat' differ in capitals" in listing.notes[0]
    words = ("ant", "bee", "cow", "elk", "owl")
    root = trees.folders(tmp_path / "more", {w: 3 for n in words for w in (n, n.title())})
    (note,) = listed("imagefolder", root).notes
    assert note.startswith("the classes 'Ant' and 'ant', 'Bee' and 'bee', 'Cow' and 'cow', and 2 ")


def test_a_prepared_folder_of_any_name_is_no_class(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"cat": 3, "dog": 3, "prepared": 0})
    for name in ("manifest.json", "classes.csv"):
        (root / "prepared" / name).write_text("")
    listing = listed("imagefolder", root)
    assert listing.classes == ["cat", "dog"]
    assert not any("prepared" in name for name in names(listing.train))
