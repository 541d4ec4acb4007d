"""The lists beside the stores: what was drawn, skipped, found twice, and how many of each class.

train.csv, test.csv   path,label: the pictures in the order of the store
classes.csv           class,train,test: counts
skipped.csv           split,path,label,reason
duplicates.csv        test_path,test_label,train_path,train_label: same pixels in both splits;
                      for each test picture ten training pictures at most

Where the data have a validation split of their own, classes.csv has a column val, and there are

val.csv               path,label: the pictures behind those of train.csv in the train store
val-duplicates.csv    val_path,val_label,other_split,other_path,other_label: same pixels

Where pictures have domains, train.csv, val.csv and test.csv have a column domain.
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from adafilter_dist.data.prepare.journal import Journal, Stored
from adafilter_dist.data.sources.listing import Listing, Sample

Rows = Iterator[Sequence[object]]
# A picture that stands for a missing one may be there ten thousand times in each split.
_TWINS = 10


def write_lists(folder: Path, listing: Listing, train: Journal, test: Journal) -> int:
    """Write all lists; returns the number of test pictures that are in training, too."""
    classes, domains, cut = listing.classes, listing.domains, len(listing.train)
    splits: dict[str, Callable[[], Iterator[Stored]]] = {"train": partial(train.stored, 0, cut)}
    if listing.validation:
        splits["val"] = partial(train.stored, cut)
    splits["test"] = test.stored

    # The pictures in the order of the stores, and how many there are of each class.
    counts: dict[str, Counter[int]] = {name: Counter() for name in splits}
    for name, stored in splits.items():

        def rows(name: str = name, stored: Callable[[], Iterator[Stored]] = stored) -> Rows:
            for one in stored():
                sample = one.sample
                counts[name][sample.label] += 1
                row = (sample.name, classes[sample.label])
                yield (*row, domains[sample.domain]) if domains else row

        _write(folder / f"{name}.csv", ("path", "label", "domain")[: 3 if domains else 2], rows())
    per_class = (
        (name, *(count[label] for count in counts.values())) for label, name in enumerate(classes)
    )
    _write(folder / "classes.csv", ("class", *splits), per_class)

    # What was left out.
    of_validation = {sample.name for sample in listing.validation}
    skipped = (
        ("val" if sample.name in of_validation else split, sample.name, classes[sample.label], why)
        for split, journal in (("train", train), ("test", test))
        for sample, why in journal.bad
    )
    _write(folder / "skipped.csv", ("split", "path", "label", "reason"), skipped)

    # What is in two splits.
    if listing.validation:
        val_columns = ("val_path", "val_label", "other_split", "other_path", "other_label")
        twins = (
            (a.name, classes[a.label], split, b.name, classes[b.label])
            for split in ("train", "test")
            for a, b in duplicates(splits[split], splits["val"])
        )
        _write(folder / "val-duplicates.csv", val_columns, twins)
    in_both = set()

    def pairs() -> Rows:
        for a, b in duplicates(splits["train"], splits["test"]):
            in_both.add(a.name)
            yield a.name, classes[a.label], b.name, classes[b.label]

    columns = ("test_path", "test_label", "train_path", "train_label")
    _write(folder / "duplicates.csv", columns, pairs())
    return len(in_both)


def duplicates(
    train: Callable[[], Iterable[Stored]], test: Callable[[], Iterable[Stored]]
) -> Iterator[tuple[Sample, Sample]]:
    """(picture of ``test``, picture of ``train``) with the same pixels.

    For each picture of ``test`` the first ten of ``train``. Both are called several times; in
    memory are eight bytes of each hash of ``test``, and what may be in both.
    """
    of_test = np.fromiter((_key(stored) for stored in test()), np.uint64)
    of_test.sort()

    def in_test(stored: Stored) -> bool:
        at = int(np.searchsorted(of_test, np.uint64(_key(stored))))
        return at < len(of_test) and int(of_test[at]) == _key(stored)

    by_pixels: dict[bytes, list[Sample]] = defaultdict(list)
    for stored in train():
        if in_test(stored) and len(by_pixels[stored.pixels]) < _TWINS:
            by_pixels[stored.pixels].append(stored.sample)
    for stored in test():
        for twin in by_pixels.get(stored.pixels, ()):
            yield stored.sample, twin


def _key(stored: Stored) -> int:
    return int.from_bytes(stored.pixels[:8], "little")


def read_list(path: Path) -> list[dict[str, str]]:
    """The rows of a list."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # Linux allows names that are no UTF-8; they are kept readable rather than refused.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
