"""Any folder of pictures: ``train/`` and ``test/``, class folders alone, or a CSV."""

from __future__ import annotations

import os
import re
from pathlib import Path

from adafilter_dist.data.listing import Found, Sample, is_picture, root_of
from adafilter_dist.data.sources import csv_list
from adafilter_dist.errors import UserError
from adafilter_dist.pictures.formats import unread_by_suffix
from adafilter_dist.recipe.schema import Data

_TEST_FOLDERS = ("test", "val", "valid", "validation")
# What `prepare` itself writes beside the class folders.
_PREPARED = re.compile(r"adafilter-[0-9a-f]{8}")
_LAYOUTS = (
    "train/CLASS/*.jpg with test/CLASS/*.jpg (or val/), CLASS/*.jpg alone, or data.csv=FILE with "
    "the columns path,label,split"
)


def find(data: Data) -> Found:
    """The pictures below data.root or listed in data.csv; UserError says what is amiss."""
    if data.csv is not None:
        return csv_list.find(data.csv, root_of(data))
    root = data.root
    if root is None:
        raise UserError(f"data.root is not set; give the folder of the pictures: {_LAYOUTS}")
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; expected {_LAYOUTS}")
    notes: list[str] = []
    if not (root / "train").is_dir():
        classes, samples = _classes(root, root, notes)
        return Found(root, classes, samples, None, notes)
    classes, train = _classes(root / "train", root, notes)
    present = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if not present:
        return Found(root, classes, train, None, notes)
    if len(present) > 1:
        notes.append(
            f"{root / present[1]} is left out: the test set is {present[0]}/, and the validation "
            "set is cut from train/ (data.val_fraction)"
        )
    test_classes, test = _classes(root / present[0], root, notes)
    for name in test_classes:
        if name not in classes:
            raise UserError(f"{root / present[0] / name}: this class has no folder in train/")
    of_test = [classes.index(name) for name in test_classes]
    test = [Sample(s.name, of_test[s.label], s.path) for s in test]
    return Found(root, classes, train, test, notes)


def _classes(folder: Path, root: Path, notes: list[str]) -> tuple[list[str], list[Sample]]:
    """Class folders sorted by name and the pictures anywhere below them, sorted by path."""
    classes = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and not _PREPARED.fullmatch(entry.name)
    )
    if not classes:
        raise UserError(f"{folder}: no class folders in it; expected {_LAYOUTS}")
    samples: list[Sample] = []
    others: list[str] = []
    for label, name in enumerate(classes):
        pictures, strays = _walk(folder / name)
        if not pictures:
            unread = f" that are read, but {unread_by_suffix(strays)}" if strays else ""
            raise UserError(
                f"{folder / name}: no pictures in it{unread}; remove the folder, or name the "
                "classes to use with data.classes"
            )
        samples += [Sample(p.relative_to(root).as_posix(), label, p) for p in sorted(pictures)]
        others += strays
    if others:
        notes.append(
            f"{len(others):,} files below {folder} are not read, e.g. {min(others)}: "
            f"{unread_by_suffix(others)}"
        )
    return classes, samples


def _walk(folder: Path) -> tuple[list[Path], list[str]]:
    pictures: list[Path] = []
    strays: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if is_picture(name):
                pictures.append(Path(place, name))
            elif not name.startswith("."):
                strays.append(name)
    return pictures, strays
