"""What data sets that are published with lists have in common: counts, lists of text, paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.errors import UserError, printable


@dataclass(frozen=True)
class Counts:
    """Classes, and pictures of each split; ``validation`` is 0 where none is published."""

    classes: int
    train: int
    test: int
    validation: int = 0


def count_notes(title: str, published: Counts, present: Counts) -> list[str]:
    """One line that says how many of what is published are listed; none where all are."""
    if present == published:
        return []
    parts = [(present.train, published.train, "training")]
    if published.validation:
        parts.append((present.validation, published.validation, "validation"))
    parts.append((present.test, published.test, "test"))
    pictures = [f"{count:,} of {full:,} {name}" for count, full, name in parts]
    return [
        f"this is not the full {title}: {present.classes:,} of {published.classes:,} classes, "
        f"{', '.join(pictures[:-1])} and {pictures[-1]} pictures"
    ]


def read_lines(path: Path, again: str) -> Iterator[tuple[str, str]]:
    """(place, text) of each line that is not blank; the place is ``FILE, line N``.

    Bytes that are not UTF-8 are kept as Python keeps them in the names of files. Raises UserError,
    also for an empty list; ``again`` says how to get the list again.
    """
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {again}") from None
    lines = [
        (f"{path}, line {number}", line.strip(" \t\r"))
        for number, line in enumerate(text.split("\n"), 1)
    ]
    lines = [(place, line) for place, line in lines if line]
    if not lines:
        raise UserError(f"{path}: an empty list; {again}")
    yield from lines


def require_inside(place: str, name: str, again: str) -> PurePosixPath:
    """``name`` as a path that stays below its folder; UserError for any other."""
    path = PurePosixPath(name)
    control = any(ord(character) < 32 or ord(character) == 127 for character in name)
    if path.is_absolute() or ".." in path.parts or path.name in ("", ".") or control:
        raise UserError(f"{place}: {printable(name)} is no picture of the data set; {again}")
    return path


def each_once(samples: Iterable[Sample], path: Path) -> tuple[list[Sample], list[str]]:
    """The samples sorted by class and name, each name once, and a note on names listed twice.

    UserError where a picture is listed with two labels.
    """
    known: dict[str, Sample] = {}
    twice: list[str] = []
    for sample in samples:
        before = known.setdefault(sample.name, sample)
        if before is sample:
            continue
        if before.label != sample.label:
            raise UserError(f"{path}: {printable(sample.name)} is listed with two labels")
        twice.append(sample.name)
    ordered = sorted(known.values(), key=lambda sample: (sample.label, sample.name))
    notes = (
        [f"{path.name}: {len(twice):,} listed twice, taken once, e.g. {printable(min(twice))}"]
        if twice
        else []
    )
    return ordered, notes


def class_and_picture(place: str, row: str, again: str) -> str:
    """``CLASS/PICTURE`` of a row of a list; UserError for anything else."""
    inside = require_inside(place, row, again)
    if len(inside.parts) != 2:
        raise UserError(f"{place}: {printable(row)}; expected CLASS/PICTURE.jpg; {again}")
    return str(inside)


def in_class_folders(
    base: Path, folder: str, lists: Mapping[Path, Sequence[str]]
) -> tuple[list[str], list[list[Sample]], list[str]]:
    """Classes, the samples of each list and notes; ``lists`` hold ``CLASS/PICTURE`` in ``folder``.

    Classes are sorted by name. Labels index those of all lists together.
    """
    classes = sorted({name.partition("/")[0] for listed in lists.values() for name in listed})
    label = {name: number for number, name in enumerate(classes)}
    splits: list[list[Sample]] = []
    notes: list[str] = []
    for path, listed in lists.items():
        samples, twice = each_once(
            [Sample(f"{folder}/{name}", label[name.partition("/")[0]], base) for name in listed],
            path,
        )
        splits.append(samples)
        notes += twice
    return classes, splits, notes


def first_folder(places: Sequence[Path], *needed: str) -> Path | None:
    """The first place that has all of the folders and files ``needed``."""
    return next((p for p in places if all((p / name).exists() for name in needed)), None)
