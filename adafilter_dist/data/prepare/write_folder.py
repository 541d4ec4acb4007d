"""Filling a new folder with stores, lists and the manifest, which comes last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from adafilter_dist.data.prepare.brightness import dark_notes
from adafilter_dist.data.prepare.lists import write_lists
from adafilter_dist.data.prepare.progress import counting
from adafilter_dist.data.prepare.read_pictures import PictureReader
from adafilter_dist.data.sources.fingerprint import fingerprint
from adafilter_dist.data.sources.listing import Listing, Sample
from adafilter_dist.data.sources.origin import Origin
from adafilter_dist.data.stored.manifest import Manifest, StoredSplit, settings_of
from adafilter_dist.data.stored.pool import default_workers
from adafilter_dist.data.stored.store import Written, write_store
from adafilter_dist.errors import UserError, printable
from adafilter_dist.pictures.reading import DECODING
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.version import __version__

_BAD_SHOWN = 10


def write_folder(
    folder: Path,
    listing: Listing,
    data: Data,
    console: Console,
    origins: Sequence[Origin],
) -> Manifest:
    """Write everything that a prepared folder holds, and give its manifest.

    ``origins`` are the places that have these pictures, the last one that of the listing.

    Every picture is read before the error about bad ones, so that its list is complete.
    """
    train = PictureReader(listing.train_store, data.stored_size, data.stored_format)
    test = PictureReader(listing.test, data.stored_size, data.stored_format)
    stores = {}
    for name, reader in (("train", train), ("test", test)):
        stores[name] = _write_store(folder / name, reader, data, console)
    bad = [*train.bad, *test.bad]
    if bad and data.on_bad == "error":
        raise UserError(_complaint(bad, len(listing.train_store) + len(listing.test)))
    validation_names = {sample.name for sample in listing.validation}
    validation = sum(stored.sample.name in validation_names for stored in train.stored)
    _require_some(listing, stores, validation)
    duplicates = write_lists(folder, listing.classes, train, test, validation_names)
    cut = len(train.stored) - validation
    splits = [train.stored[:cut], test.stored, *([train.stored[cut:]] if validation else [])]
    contents = [[(stored.sample.label, stored.content) for stored in split] for split in splits]
    manifest = Manifest(
        adafilter=__version__,
        settings=settings_of(data),
        fingerprint=fingerprint(data, listing.classes, contents),
        sources=origins[-1].sources,
        decoding=DECODING,
        root=listing.root,
        origins=list(origins),
        classes=listing.classes,
        train=_entry(stores["train"]),
        test=_entry(stores["test"]),
        validation=validation,
        skipped=len(bad),
        duplicates=duplicates,
        notes=[*listing.notes, *dark_notes([*train.stored, *test.stored])],
    )
    manifest.write(folder)
    return manifest


def _write_store(path: Path, reader: PictureReader, data: Data, console: Console) -> Written:
    records = reader.records()
    with counting(console, f"storing {path.name}", len(records)) as progress:
        return write_store(
            path,
            records,
            format=data.stored_format,
            jpeg_quality=data.jpeg_quality,
            num_workers=data.num_workers or default_workers(),
            progress=progress,
        )


def _entry(written: Written) -> StoredSplit:
    return StoredSplit(
        file=written.path.name,
        size=written.size,
        sha256=written.sha256,
        pictures=len(written.labels),
    )


def _complaint(bad: Sequence[tuple[Sample, str]], of: int) -> str:
    lines = [f"{len(bad):,} of {of:,} pictures cannot be used:"]
    lines += [f"  {printable(sample.path)}: {reason}" for sample, reason in bad[:_BAD_SHOWN]]
    if len(bad) > _BAD_SHOWN:
        lines.append(f"  ... and {len(bad) - _BAD_SHOWN:,} more")
    lines.append("mend or remove them, or go on without them: data.on_bad=skip")
    return "\n".join(lines)


def _require_some(listing: Listing, stores: dict[str, Written], validation: int) -> None:
    labels = stores["train"].labels
    counts = np.bincount(labels[: len(labels) - validation], minlength=len(listing.classes))
    empty: Iterable[str] = (
        name for name, count in zip(listing.classes, counts, strict=True) if not count
    )
    for name in empty:
        raise UserError(f"{listing.root}: every training picture of class {name!r} is bad")
    if not len(stores["test"].labels):
        raise UserError(f"{listing.root}: every test picture is bad; mend some")
    if listing.validation and not validation:
        raise UserError(
            f"{listing.root}: every validation picture is bad; mend some, or remove them all: then "
            "data.val_fraction of the training pictures is drawn"
        )
