"""The lists beside the stores: what was drawn, skipped, found twice, and how many of each class.

train.csv, test.csv   path,label: the pictures in the order of the store
classes.csv           class,train,test: counts
skipped.csv           split,path,label,reason
duplicates.csv        test_path,test_label,train_path,train_label: same pixels in both splits
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from adafilter_dist import atomic
from adafilter_dist.data.intake import Intake, Stored
from adafilter_dist.data.listing import Sample


def write_lists(folder: Path, classes: Sequence[str], train: Intake, test: Intake) -> int:
    """Write all five lists; returns the number of duplicates across the splits."""
    for name, intake in (("train", train), ("test", test)):
        pictures = ((stored.sample.name, classes[stored.sample.label]) for stored in intake.stored)
        _write(folder / f"{name}.csv", ("path", "label"), pictures)
    counts = [Counter(stored.sample.label for stored in side.stored) for side in (train, test)]
    per_class = ((name, counts[0][label], counts[1][label]) for label, name in enumerate(classes))
    _write(folder / "classes.csv", ("class", "train", "test"), per_class)
    skipped = (
        (split, sample.name, classes[sample.label], reason)
        for split, intake in (("train", train), ("test", test))
        for sample, reason in intake.bad
    )
    _write(folder / "skipped.csv", ("split", "path", "label", "reason"), skipped)
    pairs = duplicates(train.stored, test.stored)
    columns = ("test_path", "test_label", "train_path", "train_label")
    rows = ((a.name, classes[a.label], b.name, classes[b.label]) for a, b in pairs)
    _write(folder / "duplicates.csv", columns, rows)
    return len({a.name for a, _ in pairs})


def duplicates(train: Iterable[Stored], test: Iterable[Stored]) -> list[tuple[Sample, Sample]]:
    """(test picture, training picture) for all pairs with the same pixels."""
    by_pixels: dict[bytes, list[Sample]] = defaultdict(list)
    for stored in train:
        by_pixels[stored.pixels].append(stored.sample)
    return [(stored.sample, twin) for stored in test for twin in by_pixels.get(stored.pixels, ())]


def read_list(path: Path) -> list[dict[str, str]]:
    """The rows of a list."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    # Linux allows names that are no UTF-8; they are kept readable rather than refused.
    atomic.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
