"""Where prepared data came from: the place of the pictures, their lists, and hashes of both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from adafilter_dist.data.sources.datasets import lists_of
from adafilter_dist.data.sources.listing import Listing, root_of
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.sealed_files import sha256_of


class Origin(BaseModel):
    """One place that prepared data came from.

    ``root`` is relative to the prepared folder where that lies inside it, so that both can be moved
    together, and None for the place that a published data set has by default. ``csv`` is relative
    to the root where it lies below it. ``lists`` maps the files that say which pictures belong
    where to their sha256; ``sources`` is the hash of names, sizes and times of the pictures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str | None
    csv: str | None
    lists: dict[str, str] = {}
    sources: str = ""

    def place(self, folder: Path) -> Path | None:
        """The folder of the pictures, for prepared data in ``folder``."""
        return None if self.root is None else Path(os.path.normpath(folder / self.root))

    def same_place(self, other: Origin, folder: Path) -> bool:
        """Whether both name the same folder and the same CSV, by whatever path."""
        mine, theirs = self.place(folder), other.place(folder)
        if mine is None or theirs is None:
            return mine is theirs
        if (self.csv is None) != (other.csv is None):
            return False
        if self.csv is not None and other.csv is not None:
            csv_too = self.csv == other.csv or _same(mine / self.csv, theirs / other.csv)
            return csv_too and _same(mine, theirs)
        return _same(mine, theirs)

    def described(self, folder: Path) -> str:
        """The CSV, else the folder of the pictures, as messages name it."""
        place = self.place(folder)
        if place is None:
            return "the data set's own place"
        return str(place if self.csv is None else place / self.csv)


def origin_of(data: Data, folder: Path, sources: str = "") -> Origin:
    """Where the recipe's pictures come from, with the lists as they are now."""
    return Origin(
        root=_root_name(data, folder), csv=csv_name(data), lists=hashes(data), sources=sources
    )


def csv_name(data: Data) -> str | None:
    """``data.csv``, relative to the root of the pictures where it lies below it."""
    if data.csv is None:
        return None
    inside = data.csv.is_relative_to(root_of(data))
    return data.csv.relative_to(root_of(data)).as_posix() if inside else str(data.csv)


def hashes(data: Data) -> dict[str, str]:
    """sha256 of each file that lists the pictures, by its name below the root; what is there."""
    known = {}
    for name, path in lists_of(data).items():
        try:
            known[name] = sha256_of(path)
        except OSError:
            continue  # whoever needs it says so
    return known


def changed_list(origin: Origin, data: Data) -> Path | None:
    """The first file that is not what it was when it was prepared; one that is gone does not count.

    Reads the lists, no picture.
    """
    now = hashes(data)
    for name, path in lists_of(data).items():
        if name in origin.lists and now.get(name, origin.lists[name]) != origin.lists[name]:
            return path
    return None


Entry = tuple[int, int, bytes]
"""A picture's label, domain, and sha256 of its source."""


def fingerprint(
    data: Data,
    classes: Sequence[str],
    domains: Sequence[str],
    splits: Iterable[Iterable[Entry]],
) -> str:
    """Hash of how pictures are stored, the classes, the domains, and each split's entries.

    Order counts; paths, and how it came to this selection, do not. ``splits`` are train, test and,
    where the data have one of their own, validation.
    """
    quality = data.jpeg_quality if data.stored_format == "jpg" else None
    stored = [data.stored_size, data.stored_format, quality, list(classes)]
    stored += [list(domains)] if domains else []
    digest = hashlib.sha256(json.dumps(stored).encode())
    for split in splits:
        digest.update(b"split")
        for label, domain, content in split:
            number = domain.to_bytes(4, "little") if domains else b""
            digest.update(label.to_bytes(4, "little") + number + content)
    return digest.hexdigest()


def sources_hash(listing: Listing, progress: Callable[[int], None] = lambda done: None) -> str:
    """Hash of names, labels, sizes and times of the sources; reads no picture.

    ``progress`` is called with the number of pictures done.
    """

    @lru_cache(maxsize=16)  # many pictures may be out of one file
    def stamp(path: Path) -> tuple[int, int]:
        try:
            status = os.stat(path)
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    done = 0
    digest = hashlib.sha256(repr(listing.classes).encode())
    if listing.domains:
        digest.update(repr(listing.domains).encode())
    splits = [("train", listing.train), ("test", listing.test)]
    if listing.validation:
        splits.append(("validation", listing.validation))
    for name, samples in splits:
        digest.update(name.encode())
        for sample in samples:
            digest.update(repr((sample.name, sample.label, *stamp(sample.path))).encode())
            if listing.domains:
                digest.update(sample.domain.to_bytes(4, "little"))
            done += 1
            progress(done)
    return digest.hexdigest()


def _root_name(data: Data, folder: Path) -> str | None:
    # The files of Fashion-MNIST are the same everywhere, by their sha256.
    if data.name in ("fashion_mnist", "mixed_domains") or (data.root is None and data.csv is None):
        return None
    root = root_of(data)
    return os.path.relpath(root, folder) if folder.is_relative_to(root) else str(root)


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.normpath(a) == os.path.normpath(b) or os.path.samefile(a, b)
    except OSError:
        return False
