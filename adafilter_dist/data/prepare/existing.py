"""What a prepared folder holds already, and whether it has to be written again."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.read_pictures import content_hash, read, stored_pixels
from adafilter_dist.data.sources.listing import Listing, Sample, root_of
from adafilter_dist.data.sources.origin import Entry, Origin, changed_list, fingerprint
from adafilter_dist.data.stored.manifest import Manifest, read_manifest
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.data.stored.prepared import damage_of, other_settings
from adafilter_dist.data.stored.verification import DamagedStore, verify
from adafilter_dist.errors import UserError, printable
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import DECODING
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.slurm.cpus import cpus_of_rank
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.progress import counting

_OWN = re.compile(
    r"manifest\.json|(train|test)\.beton(\.sha256)?"
    r"|(train|val|test|classes|skipped|duplicates|val-duplicates)\.csv"
)
_SHOWN = 5


def existing_manifest(folder: Path, data: Data) -> Manifest | None:
    """The manifest of the folder, None where nothing is prepared.

    Raises UserError where the folder holds something that must not be replaced.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder}: not empty, and not written by `adafilter prepare`; choose another "
                "folder with data.prepared"
            )
        return None
    other = other_settings(manifest, data)
    if other:
        raise UserError(
            f"{folder}: holds pictures prepared with other settings ({other}); choose another "
            "folder with data.prepared, or remove this one"
        )
    return manifest


def require_nothing_else(folder: Path) -> None:
    """UserError where a folder that is about to be replaced holds what `prepare` did not write."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        others = sorted(
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            or not (_OWN.fullmatch(entry.name) or entry.name.startswith("."))
        )
    if others:
        more = ", ..." if len(others) > _SHOWN else ""
        names = ", ".join(map(printable, others[:_SHOWN])) + more
        raise UserError(
            f"{folder}: has to be prepared again, which would delete what else is in it: {names}; "
            "move that away first, or choose another folder with data.prepared"
        )


def recorded_origin(folder: Path, manifest: Manifest, current: Origin) -> Origin | None:
    """The manifest's entry for the place of ``current``."""
    recorded = manifest.known_origins(folder)
    return next((origin for origin in recorded if origin.same_place(current, folder)), None)


def origins_to_write(
    folder: Path,
    manifest: Manifest,
    listing: Listing,
    current: Origin,
    data: Data,
    console: Console,
) -> list[Origin] | None:
    """The origins that the folder is to be written with again; None where it is right as it is.

    Notes ``current`` in the manifest where the folder holds the same pictures from another place.
    Raises UserError where it holds others, which belong to another place.
    """
    recorded = recorded_origin(folder, manifest, current)
    others = [o for o in manifest.origins if not o.same_place(current, folder)]

    # The same names, sizes and times: no picture has to be read.
    unchanged = (
        recorded is not None
        and recorded.sources == current.sources
        and manifest.decoding == DECODING
    )
    if unchanged or same_pictures(manifest, listing, folder, data, console):
        damage = find_damage(folder, manifest, data, console)
        if damage:
            print_plain(console, f"{damage}: preparing again")
            return [*others, current]
        # Copied, moved or touched, but the same pictures: next time the quick look is enough.
        if recorded != current or manifest.format == 1 or manifest.decoding != DECODING:
            update = {"format": 2, "sources": current.sources, "decoding": DECODING}
            manifest.model_copy(update={**update, "origins": [*others, current]}).write(folder)
        print_plain(console, f"already prepared: {folder}")
        return None

    # Other pictures: they replace what came from here alone.
    if recorded is None or others:
        first = (others or manifest.known_origins(folder))[0].described(folder)
        raise UserError(
            f"{folder}: holds the pictures of {first}, which are others than those of "
            f"{current.described(folder)} now; choose another folder with data.prepared, or "
            "remove this one"
        )
    print_plain(console, f"{_changed(manifest, recorded, current, data)}: preparing again")
    return [current]


def _changed(manifest: Manifest, recorded: Origin, current: Origin, data: Data) -> str:
    """What changed at our own place."""
    if recorded.sources == current.sources and manifest.decoding != DECODING:
        return f"adafilter {manifest.adafilter} read some of the pictures otherwise"
    changed = changed_list(recorded, data)
    if changed is not None:
        return f"{changed} changed"
    return f"the pictures of {current.csv or root_of(data)} changed"


def find_damage(folder: Path, manifest: Manifest, data: Data, console: Console) -> str:
    """What is wrong with the stores, empty where nothing is; every byte is read if it has to be."""
    damage = damage_of(folder, manifest)
    if damage or data.verify == "never":
        return damage
    try:
        verified = verify(folder, manifest, always=data.verify == "always")
    except DamagedStore as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder}: cannot be read ({error.strerror})"
    if verified is not None:
        print_plain(console, verified.line(str(folder)))
    return ""


def same_pictures(
    manifest: Manifest, listing: Listing, folder: Path, data: Data, console: Console
) -> bool:
    """Whether the folder was made of just these pictures, by their content; reads all of them."""
    skipped = _skipped(folder) if manifest.skipped else set()
    workers = data.num_workers or cpus_of_rank()

    def content(entry: tuple[str, Sample]) -> bytes | None:
        split, sample = entry
        if (split, sample.name) not in skipped:
            return content_hash(sample)
        try:
            stored_pixels(read(sample), data.stored_size)
        except BadPicture:
            return None  # left out then, and still bad
        return content_hash(sample)

    listed = {"train": listing.train, "test": listing.test, "val": listing.validation}
    listed = {split: samples for split, samples in listed.items() if samples}
    every = ((split, sample) for split, samples in listed.items() for sample in samples)
    done = itertools.count(1)
    try:
        with (
            counting(console, "comparing pictures", len(listing.all_samples)) as progress,
            WorkerPool(workers) as pool,
        ):
            hashes = pool.map(content, every, ahead=4 * workers)

            def entries(samples: Iterable[Sample]) -> Iterator[Entry]:
                for sample, digest in zip(samples, hashes, strict=False):
                    if digest is not None:
                        yield sample.label, sample.domain, digest
                    progress(next(done))

            splits = map(entries, listed.values())
            now = fingerprint(data, listing.classes, listing.domains, splits)
    except BadPicture:
        return False
    return now == manifest.fingerprint


def _skipped(folder: Path) -> set[tuple[str, str]]:
    """(split, name) of the pictures that were left out."""
    try:
        return {(row["split"], row["path"]) for row in read_list(folder / "skipped.csv")}
    except (OSError, KeyError):
        return set()
