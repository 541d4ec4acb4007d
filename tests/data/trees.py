"""Miniature data sets in their official layouts, made of real pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.shared.real_pictures import photographs

SIZE = (80, 64)


@cache
def _photograph(number: int) -> Image.Image:
    with Image.open(photographs()[number]) as picture:
        return picture.resize((picture.width // 2, picture.height // 2))


def jpegs() -> Iterator[bytes]:
    """Different real pictures without end: parts of 80x64 px cut out of photographs."""
    place = 0
    while True:
        for number in range(20):
            photograph = _photograph(number)
            left = place * 37 % (photograph.width - SIZE[0])
            top = place * 23 % (photograph.height - SIZE[1])
            part = photograph.crop((left, top, left + SIZE[0], top + SIZE[1]))
            file = io.BytesIO()
            part.save(file, "JPEG", quality=90)
            yield file.getvalue()
        place += 1


def food101(root: Path, classes: int = 3, train: int = 4, test: int = 2) -> Path:
    """``root/food-101`` with images/ and meta/ as published; returns ``root``."""
    base, pictures = root / "food-101", jpegs()
    names = ["apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio"][:classes]
    (base / "meta").mkdir(parents=True)
    for split, count, first in (("train", train, 1000), ("test", test, 2000)):
        listed = {name: [f"{name}/{first + i}" for i in range(count)] for name in names}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        lines = "\n".join(path for paths in listed.values() for path in paths)
        (base / "meta" / f"{split}.txt").write_text(lines)
        for path in lines.split():
            file = base / "images" / f"{path}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(next(pictures))
    (base / "meta" / "classes.txt").write_text("\n".join(names))
    return root


def caltech256(root: Path, counts: Mapping[str, int] | None = None) -> Path:
    """``root/caltech256/256_ObjectCategories`` with clutter and the archive's stray files."""
    base, pictures = root / "caltech256" / "256_ObjectCategories", jpegs()
    counts = counts or {"001.ak47": 10, "056.dog": 11, "198.spider": 12, "257.clutter": 5}
    for name, count in counts.items():
        (base / name).mkdir(parents=True)
        for i in range(1, count + 1):
            (base / name / f"{name[:3]}_{i:04d}.jpg").write_bytes(next(pictures))
    if "056.dog" in counts:
        (base / "056.dog" / "greg" / "vision309").mkdir(parents=True)
        (base / "056.dog" / "greg" / "vision309" / "056_0001.jpg").write_bytes(next(pictures))
    if "198.spider" in counts:
        (base / "198.spider" / "RENAME2").write_text("#!/bin/sh\nmv a b\n")
    return root


DOGS = ("n02085620-Chihuahua", "n02088364-beagle", "n02105855-Shetland_sheepdog")
VARIANTS = ("707-320", "Boeing 717", "F-16A/B", "F/A-18")
ROOMS = ("airport_inside", "kitchen", "movietheater")
_ODD = ("with blanks 01.jpg", "UPPER.JPG", "dots.in.it.v2.jpg", "caf\u00e9_\u53f0\u6240.jpg")


def stanford_dogs(root: Path, train: int = 5, test: int = 3, lists: str = "") -> Path:
    """``root/Images`` and the two lists, in the folder ``lists``; names with blanks and the like.

    A PNG under the name of a JPEG, and a picture of no list, as the archive has them.
    """
    pictures = jpegs()
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for dog in DOGS:
        files = [f"{dog.partition('-')[0]}_{number}.jpg" for number in range(train + test - 4)]
        _write(root / "Images" / dog, [*_ODD, *files, "of_no_list.jpg"], pictures)
        names = [f"{dog}/{name}" for name in (*_ODD, *files)]
        rows["train"] += names[:train]
        rows["test"] += names[train:]
    png = root / "Images" / rows["train"][-1]
    with Image.open(png) as picture:
        picture.convert("RGBA").save(png, "PNG")
    (root / lists).mkdir(exist_ok=True)
    for split, names in rows.items():
        mat_list(root / lists / f"{split}_list.mat", names)
    return root


def mat_list(path: Path, names: Sequence[str]) -> None:
    """A list as MATLAB wrote those of Stanford Dogs: a column of cells, and one of numbers."""
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    dogs = sorted({name.partition("/")[0] for name in names})
    numbers = [[dogs.index(name.partition("/")[0]) + 1] for name in names]
    savemat(path, {"file_list": cells, "labels": np.array(numbers, np.uint8)}, do_compression=True)


def fgvc_aircraft(root: Path, train: int = 3, val: int = 2, test: int = 2) -> Path:
    """``root/fgvc-aircraft-2013b/data`` with variants that have blanks and slashes in them."""
    data, pictures = root / "fgvc-aircraft-2013b" / "data", jpegs()
    rows: dict[str, list[str]] = {}
    number = 34309
    for split, count in (("train", train), ("val", val), ("test", test)):
        rows[split] = []
        for variant in VARIANTS:
            for _ in range(count):
                rows[split].append(f"{number:07d} {variant}")
                number += 1111
    rows["trainval"] = rows["train"] + rows["val"]
    names = [f"{row[:7]}.jpg" for split in ("trainval", "test") for row in rows[split]]
    _write(data / "images", names, pictures)
    for split, lines in rows.items():
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    (data / "variants.txt").write_text("\n".join(VARIANTS) + "\n")
    return root


def indoor67(root: Path, train: int = 5, test: int = 2) -> Path:
    """``root/indoorCVPR_09/Images`` with more pictures than are listed; the lists in ``root``."""
    base, pictures = root / "indoorCVPR_09", jpegs()
    rows: dict[str, list[str]] = {"Train": [], "Test": []}
    for room in ROOMS:
        names = [*_ODD, *(f"{room}_{number:02d}.jpg" for number in range(train + test - 4))]
        _write(base / "Images" / room, [*names, "of_no_list.jpg"], pictures)
        rows["Train"] += [f"{room}/{name}" for name in names[:train]]
        rows["Test"] += [f"{room}/{name}" for name in names[train:]]
    for split, lines in rows.items():  # as published: no line end after the last
        (root / f"{split}Images.txt").write_text("\n".join(lines), "utf-8")
    return root


def decathlon(root: Path, name: str, classes: int = 3, train: int = 4, val: int = 2) -> Path:
    """``root/decathlon-1.0``: annotations, and ``data/NAME`` with test pictures of no label."""
    base, pictures = root / "decathlon-1.0", jpegs()
    suffix = {"ucf101": "jpg", "omniglot": "png"}[name]
    kinds = ["ApplyEyeMakeup", "Balance Beam", "v. Clean & Jerk", "caf\u00e9"][:classes]
    categories = [{"id": 10 + i, "name": kind} for i, kind in enumerate(kinds)]
    number = 0
    for split, count in (("train", train), ("val", val)):
        listed: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        for category in categories:
            folder = f"{split}/{category['id']:04d}"
            files = [f"{number + i:06d}.{suffix}" for i in range(count)]
            _write(base / "data" / name / folder, files, pictures)
            for file in files:
                number += 1
                listed["images"].append(
                    {"id": number, "file_name": f"data/{name}/{folder}/{file}", "width": 80}
                )
                listed["annotations"].append(
                    {"id": number, "image_id": number, "category_id": category["id"], "area": 1}
                )
        (base / "annotations").mkdir(exist_ok=True)
        path = base / "annotations" / f"{name}_{split}.json"
        path.write_text(json.dumps(listed | {"info": {}, "categories": categories}))
    _write(base / "data" / name / "test", [f"000001.{suffix}"], pictures)
    return root


def _write(folder: Path, names: Iterable[str], pictures: Iterator[bytes]) -> None:
    """A picture for each name: PNG where the suffix says so, JPEG else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = next(pictures)
        if name.endswith(".png"):
            file = io.BytesIO()
            Image.open(io.BytesIO(content)).convert("1").save(file, "PNG")
            content = file.getvalue()
        (folder / name).write_bytes(content)


def folders(root: Path, counts: Mapping[str, int]) -> Path:
    """``root/NAME/*.jpg`` for each name, which may hold slashes (``train/cat``)."""
    pictures = jpegs()
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03d}.jpg").write_bytes(next(pictures))
    return root
