"""Two hashes of a data set: what was prepared, and a cheap one that says whether to look again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from adafilter_dist.data.sources.listing import Listing
from adafilter_dist.recipe.sections.data import Data


def fingerprint(
    data: Data, classes: Sequence[str], splits: Iterable[Iterable[tuple[int, bytes]]]
) -> str:
    """Hash of how pictures are stored, the classes, and each split's (label, sha256 of the source).

    Order counts; paths, and how it came to this selection, do not. ``splits`` are train, test and,
    where the data have one of their own, validation.
    """
    quality = data.jpeg_quality if data.stored_format == "jpg" else None
    stored = [data.stored_size, data.stored_format, quality, list(classes)]
    digest = hashlib.sha256(json.dumps(stored).encode())
    for split in splits:
        digest.update(b"split")
        for label, content in split:
            digest.update(label.to_bytes(4, "little") + content)
    return digest.hexdigest()


def sources_hash(listing: Listing) -> str:
    """Hash of names, labels, sizes and times of the sources; reads no picture."""

    @cache
    def stamp(path: Path) -> tuple[int, int]:
        try:
            status = os.stat(path)
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    digest = hashlib.sha256(repr(listing.classes).encode())
    splits = [("train", listing.train), ("test", listing.test)]
    if listing.validation:
        splits.append(("validation", listing.validation))
    for name, samples in splits:
        digest.update(name.encode())
        for sample in samples:
            digest.update(repr((sample.name, sample.label, *stamp(sample.path))).encode())
    return digest.hexdigest()
