"""Data sets published with lists: Stanford Dogs, FGVC-Aircraft, MIT Indoor-67, the Decathlon's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import FGVCAircraft

from adafilter_dist.data.sources import decathlon, fgvc_aircraft, indoor67, stanford_dogs
from adafilter_dist.data.sources.published import Counts
from tests.data import trees
from tests.data.listings import listed, names, per_class, refused

TREES: dict[str, Callable[[Path], Path]] = {
    "stanford_dogs": trees.stanford_dogs,
    "fgvc_aircraft": trees.fgvc_aircraft,
    "indoor67": trees.indoor67,
    "ucf101": lambda root: trees.decathlon(root, "ucf101"),
    "omniglot": lambda root: trees.decathlon(root, "omniglot"),
}
SIZES = {  # a class: training, validation, test
    "stanford_dogs": (5, 0, 3),
    "fgvc_aircraft": (3, 2, 2),
    "indoor67": (5, 0, 2),
    "ucf101": (4, 0, 2),
    "omniglot": (4, 0, 2),
}
ODD = {"with blanks 01.jpg", "UPPER.JPG", "dots.in.it.v2.jpg", "caf\u00e9_\u53f0\u6240.jpg"}


@pytest.mark.parametrize("name", TREES)
def test_official_layouts_are_listed_as_published(tmp_path: Path, name: str) -> None:
    listing = listed(name, TREES[name](tmp_path))
    train, val, test = SIZES[name]
    classes = len(listing.classes)
    assert classes == (4 if name == "fgvc_aircraft" else 3)
    assert per_class(listing.train) == [train] * classes
    assert per_class(listing.validation) == ([val] * classes if val else [])
    assert per_class(listing.test) == [test] * classes
    every = listing.all_samples
    assert len(names(every)) == len(every)
    assert all(sample.path.is_file() and sample.path.match(sample.name) for sample in every)
    assert not any("of_no_list" in name for name in names(every))
    if name in ("stanford_dogs", "indoor67"):
        assert {Path(sample.name).name for sample in every} >= ODD
    note = listing.notes[-1]
    assert note.startswith("this is not the full ")
    assert f"{classes} of " in note and f"{len(listing.train)} of " in note


@pytest.mark.parametrize("name", TREES)
def test_whole_sets_have_no_note(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The replica declared to be the published set: what is counted is what is listed.
    train, val, test = SIZES[name]
    classes = 4 if name == "fgvc_aircraft" else 3
    small = Counts(classes, train * classes, test * classes, val * classes)
    if name in decathlon.PUBLISHED:
        monkeypatch.setitem(decathlon.PUBLISHED, name, small)
    else:
        module = {
            "stanford_dogs": stanford_dogs,
            "fgvc_aircraft": fgvc_aircraft,
            "indoor67": indoor67,
        }[name]
        monkeypatch.setattr(module, "PUBLISHED", small)
    notes = listed(name, TREES[name](tmp_path)).notes
    assert not [note for note in notes if "not the full" in note]


def test_aircraft_is_what_torchvision_lists(tmp_path: Path) -> None:
    root = trees.fgvc_aircraft(tmp_path)
    listing = listed("fgvc_aircraft", root)
    assert listing.classes == list(trees.VARIANTS)
    parts = {"train": listing.train, "val": listing.validation, "test": listing.test}
    for split, ours in parts.items():
        theirs = FGVCAircraft(str(root), split=split)
        pairs = sorted(zip(theirs._image_files, theirs._labels, strict=True))
        assert sorted((str(s.path), s.label) for s in ours) == pairs
    for place in (root / "fgvc-aircraft-2013b", root / "fgvc-aircraft-2013b" / "data"):
        assert names(listed("fgvc_aircraft", place).test) == names(listing.test)


def test_aircraft_validation_may_join_the_training_pictures(tmp_path: Path) -> None:
    root = trees.fgvc_aircraft(tmp_path)
    listing = listed("fgvc_aircraft", root, join_validation=True)
    assert not listing.validation and per_class(listing.train) == [5] * 4
    theirs = FGVCAircraft(str(root), split="trainval")
    assert {str(sample.path) for sample in listing.train} == set(theirs._image_files)
    assert listing.train == sorted(listing.train, key=lambda s: (s.label, s.name))
    assert "8 pictures of the validation split are training pictures, 20 in all" in str(
        listing.notes
    )
    message = refused("indoor67", trees.indoor67(tmp_path / "rooms"), join_validation=True)
    assert "data.join_validation=true" in message and "no validation split" in message


def test_dogs_lists_may_lie_in_their_folder(tmp_path: Path) -> None:
    root = trees.stanford_dogs(tmp_path, lists="lists")
    listing = listed("stanford_dogs", root)
    assert listing.classes == list(trees.DOGS)
    assert "file_list" not in str(listing.notes)
    # Its README: with fewer than 100 a class, the first ones of the list. Ours draw by seed.
    assert per_class(listed("stanford_dogs", root, train_per_class=2).train) == [2] * 3


def test_indoor_lists_lie_beside_either_folder_and_may_come_from_windows(tmp_path: Path) -> None:
    root = trees.indoor67(tmp_path)
    expected = names(listed("indoor67", root).train)
    base = root / "indoorCVPR_09"
    assert names(listed("indoor67", base).train) == expected
    for name in ("TrainImages.txt", "TestImages.txt"):
        text = (root / name).read_text("utf-8")
        (base / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", " \r\n").encode() + b"\r\n")
        (root / name).unlink()
    assert names(listed("indoor67", root).train) == expected


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    root = trees.indoor67(tmp_path)
    kitchen = root / "indoorCVPR_09" / "Images" / "kitchen"
    latin = b"cuisin\xe9.jpg"
    shutil.copy(kitchen / "UPPER.JPG", str(kitchen).encode() + b"/" + latin)
    with (root / "TrainImages.txt").open("ab") as file:
        file.write(b"\nkitchen/" + latin)
    (odd,) = (s for s in listed("indoor67", root).train if s.name.startswith("Images/kitchen/cuis"))
    assert odd.path.is_file()


def test_decathlon_tests_on_validation_and_says_so(tmp_path: Path) -> None:
    root = trees.decathlon(trees.decathlon(tmp_path, "ucf101"), "omniglot")
    listing = listed("ucf101", root)
    assert listing.classes == ["ApplyEyeMakeup", "Balance Beam", "v. Clean & Jerk"]
    assert {sample.name.split("/")[1] for sample in listing.test} == {"val"}
    assert not listing.validation
    assert listing.notes[0] == (
        "the labels of the Decathlon's test pictures are not published: its validation split of 6 "
        "pictures is the test split here"
    )
    assert all(s.name.endswith(".png") for s in listed("omniglot", root).all_samples)
    # Unpacked beside annotations/, without the folder data/.
    base = root / "decathlon-1.0"
    for folder in (base / "data").iterdir():
        folder.rename(base / folder.name)
    (base / "data").rmdir()
    again = listed("ucf101", base)
    assert names(again.train) == names(listing.train)
    assert all(sample.path.is_file() for sample in again.all_samples)


def test_decathlon_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    root = trees.decathlon(tmp_path, "omniglot")
    for split in ("train", "val"):
        edit(root, "omniglot", split, lambda t: t["categories"][1].update(name="ApplyEyeMakeup"))
    assert listed("omniglot", root).classes == [
        "0010.ApplyEyeMakeup",
        "0011.ApplyEyeMakeup",
        "v. Clean & Jerk",
    ]


def edit(root: Path, name: str, split: str, change: Callable[[dict[str, Any]], object]) -> Path:
    path = root / "decathlon-1.0" / "annotations" / f"{name}_{split}.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.pop("images"), "images: Field required"),
        (lambda t: t["images"][0].update(id="x"), "images.0.id: Input should be a valid integer"),
        (lambda t: t["images"][1].update(id=t["images"][0]["id"]), "is in it twice"),
        (lambda t: t["annotations"].pop(0), "is none"),
        (lambda t: t["annotations"][0].update(category_id=99), "category 99, which is none"),
        (lambda t: t["annotations"][0].update(image_id=999), "image 999, which is none"),
        (lambda t: t["images"][0].update(file_name="data/../x.jpg"), "is no picture"),
        (lambda t: t["images"][0].update(file_name="/etc/x.jpg"), "is no picture"),
        (lambda t: t["categories"].pop(), "other categories than in ucf101_train.json"),
    ],
)
def test_decathlon_lists_that_are_not_as_published(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    root = trees.decathlon(tmp_path, "ucf101")
    path = edit(root, "ucf101", "val", change)
    message = refused("ucf101", root)
    assert message.startswith(str(path)) and what in message
    assert "decathlon-1.0-devkit.tar.gz" in message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("kitchen", "line 16: kitchen; expected CLASS/PICTURE.jpg"),
        ("a/b/c.jpg", "expected CLASS/PICTURE.jpg"),
        ("../kitchen/x.jpg", "is no picture of the data set"),
        ("/etc/passwd", "is no picture of the data set"),
        ("kitchen/\x07.jpg", r"kitchen/\x07.jpg is no picture of the data set"),
    ],
)
def test_indoor_lines_that_are_no_pictures(tmp_path: Path, line: str, what: str) -> None:
    root = trees.indoor67(tmp_path)
    with (root / "TrainImages.txt").open("a") as file:
        file.write(f"\n{line}\n")
    message = refused("indoor67", root)
    assert message.startswith(f"{root / 'TrainImages.txt'}, line 16: ") and what in message
    assert "https://web.mit.edu/torralba/www/indoor.html" in message


def test_a_picture_listed_twice_is_taken_once_and_told(tmp_path: Path) -> None:
    root = trees.indoor67(tmp_path)
    path = root / "TrainImages.txt"
    path.write_text(path.read_text("utf-8") + "\nkitchen/UPPER.JPG", "utf-8")
    listing = listed("indoor67", root)
    assert per_class(listing.train) == [5] * 3
    assert listing.notes[0] == (
        "TrainImages.txt: 1 listed twice, taken once, e.g. Images/kitchen/UPPER.JPG"
    )


def test_aircraft_lists_that_are_not_as_published(tmp_path: Path) -> None:
    root = trees.fgvc_aircraft(tmp_path)
    data = root / "fgvc-aircraft-2013b" / "data"
    path = data / "images_variant_test.txt"
    good = path.read_text()
    path.write_text(good + "1234567 Boeing 771\n")
    message = refused("fgvc_aircraft", root)
    assert message.startswith(f"{path}, line 9: 'Boeing 771' is not in variants.txt (did you mean")
    path.write_text(good + "1234567\n")
    assert "'no variant' is not in variants.txt" in refused("fgvc_aircraft", root)
    path.write_text(good + good.splitlines()[0].replace("707-320", "F/A-18"))
    assert "listed with two labels" in refused("fgvc_aircraft", root)
    path.write_text("\n")
    assert f"{path}: an empty list" in refused("fgvc_aircraft", root)
    path.unlink()
    assert f"{path}: No such file" in refused("fgvc_aircraft", root)
    (data / "variants.txt").write_text("707-320\n707-320\n")
    assert "a variant is listed twice" in refused("fgvc_aircraft", root)


def test_dogs_lists_that_are_not_as_published(tmp_path: Path) -> None:
    root = trees.stanford_dogs(tmp_path)
    path = root / "test_list.mat"
    good = path.read_bytes()
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(600)
    for content in (b"", good[:200], good[: len(good) // 2], hdf5, b"text" * 50):
        path.write_bytes(content)
        message = refused("stanford_dogs", root)
        assert message.startswith(f"{path}: not as published (") and "lists.tar" in message
    savemat(path, {"file_list": np.arange(3)})
    assert f"{path}, row 1: 0; expected CLASS/PICTURE.jpg" in refused("stanford_dogs", root)
    savemat(path, {"files": np.arange(3)})
    assert "KeyError" in refused("stanford_dogs", root)
    trees.mat_list(path, ["n02085620-Chihuahua/../x.jpg"])
    assert "is no picture of the data set" in refused("stanford_dogs", root)
    path.unlink()
    assert f"{path}: no such file" in refused("stanford_dogs", root)


@pytest.mark.parametrize("name", TREES)
def test_a_set_that_is_not_there_says_where_and_what(tmp_path: Path, name: str) -> None:
    message = refused(name, tmp_path / "nowhere")
    assert f"data.root={tmp_path / 'nowhere'}: " in message and "is not there; expected" in message
    assert "http" in message or "data.download=true" in message
    assert not (tmp_path / "nowhere").exists()
