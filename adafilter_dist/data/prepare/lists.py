"""The lists beside the stores: what was drawn, skipped, found twice, and how many of each class.

train.csv, test.csv   path,label: the pictures in the order of the store
classes.csv           class,train,test: counts
skipped.csv           split,path,label,reason
duplicates.csv        test_path,test_label,train_path,train_label: same pixels in both splits

Where the data have a validation split of their own, classes.csv has a column val, and there are

val.csv               path,label: the pictures behind those of train.csv in the train store
val-duplicates.csv    val_path,val_label,other_split,other_path,other_label: same pixels

Where pictures have domains, train.csv, val.csv and test.csv have a column domain.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from adafilter_dist.data.prepare.read_pictures import PictureReader, Stored
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.system import files


def write_lists(
    folder: Path,
    classes: Sequence[str],
    domains: Sequence[str],
    train: PictureReader,
    test: PictureReader,
    validation: Collection[str],
) -> int:
    """Write all lists; returns the number of test pictures that are in training, too.

    ``validation`` names the pictures of the train store that are the data's own validation split.
    """
    stored: dict[str, list[Stored]] = {"train": [], **({"val": []} if validation else {})}
    for one in train.stored:
        stored["val" if one.sample.name in validation else "train"].append(one)
    stored["test"] = test.stored
    for name, side in stored.items():
        pictures: Iterable[tuple[str, ...]] = (
            (one.sample.name, classes[one.sample.label]) for one in side
        )
        if domains:
            of_domain = (domains[one.sample.domain] for one in side)
            pictures = ((*row, domain) for row, domain in zip(pictures, of_domain, strict=True))
        _write(folder / f"{name}.csv", ("path", "label", "domain")[: 3 if domains else 2], pictures)
    counts = [Counter(one.sample.label for one in side) for side in stored.values()]
    per_class = ((name, *(c[label] for c in counts)) for label, name in enumerate(classes))
    _write(folder / "classes.csv", ("class", *stored), per_class)
    skipped = (
        ("val" if sample.name in validation else split, sample.name, classes[sample.label], reason)
        for split, reader in (("train", train), ("test", test))
        for sample, reason in reader.bad
    )
    _write(folder / "skipped.csv", ("split", "path", "label", "reason"), skipped)
    if validation:
        val_columns = ("val_path", "val_label", "other_split", "other_path", "other_label")
        twins = (
            (a.name, classes[a.label], split, b.name, classes[b.label])
            for split in ("train", "test")
            for a, b in duplicates(stored[split], stored["val"])
        )
        _write(folder / "val-duplicates.csv", val_columns, twins)
    pairs = duplicates(stored["train"], stored["test"])
    columns = ("test_path", "test_label", "train_path", "train_label")
    rows = ((a.name, classes[a.label], b.name, classes[b.label]) for a, b in pairs)
    _write(folder / "duplicates.csv", columns, rows)
    return len({a.name for a, _ in pairs})


def duplicates(train: Iterable[Stored], test: Iterable[Stored]) -> list[tuple[Sample, Sample]]:
    """(picture of ``test``, picture of ``train``) for all pairs with the same pixels."""
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
    files.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
