"""Miniature data sets in their official layouts, made of real pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from PIL import Image

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


def folders(root: Path, counts: Mapping[str, int]) -> Path:
    """``root/NAME/*.jpg`` for each name, which may hold slashes (``train/cat``)."""
    pictures = jpegs()
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03d}.jpg").write_bytes(next(pictures))
    return root
