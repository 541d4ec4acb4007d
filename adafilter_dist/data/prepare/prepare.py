"""Makes a prepared folder: whole or not at all, and only when something changed.

Read it downwards: `list_sources` lists the pictures, `prepare` decides whether they have to be
stored, `_fill` reads, checks, resizes and stores them and writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import features
from rich.console import Console

from adafilter_dist.data.prepare.existing import (
    existing_manifest,
    find_damage,
    origins_to_write,
    recorded_origin,
    require_nothing_else,
)
from adafilter_dist.data.prepare.journal import Journal
from adafilter_dist.data.prepare.lists import write_lists
from adafilter_dist.data.prepare.new_folder import (
    behind_link,
    new_folder,
    remove_leftovers,
    require_store_space,
    require_writable,
    sole_writer,
)
from adafilter_dist.data.prepare.read_pictures import PictureReader, dark_notes, quiet_pictures
from adafilter_dist.data.sources.datasets import can_fetch, fetch_dataset, is_there, list_dataset
from adafilter_dist.data.sources.listing import Listing, Sample, root_of
from adafilter_dist.data.sources.origin import Origin, fingerprint, origin_of, sources_hash
from adafilter_dist.data.stored.manifest import Manifest, StoredSplit, settings_of
from adafilter_dist.data.stored.prepared import Prepared, open_prepared, prepared_folder
from adafilter_dist.data.stored.store import Written, write_store
from adafilter_dist.data.stored.verification import remember
from adafilter_dist.errors import UserError, printable
from adafilter_dist.pictures.formats import picture_formats
from adafilter_dist.pictures.reading import DECODING
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.slurm.cpus import cpus_of_rank
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.progress import Done, counting
from adafilter_dist.version import __version__

_BAD_SHOWN = 10


@dataclass(frozen=True)
class Sources:
    """The pictures of a recipe, listed, and the place that they are from.

    ``listing`` is None where they are not there. Then they are fetched; or they are prepared
    already and stay as they are, and ``missing`` names what they cannot be compared with.
    """

    listing: Listing | None
    origin: Origin
    missing: str = ""


def list_sources(recipe: Recipe) -> Sources:
    """List the pictures, and check whether the prepared folder has to be written.

    Opens no network and writes nothing. Raises UserError for everything that this shows.
    """
    data = recipe.data
    folder = prepared_folder(data)
    # Before they are read: a list that changes meanwhile must look changed.
    origin = origin_of(data, folder)
    manifest = existing_manifest(folder, data)
    recorded = recorded_origin(folder, manifest, origin) if manifest else None
    try:
        listing = list_dataset(data)
    except UserError as error:
        if is_there(data):
            raise
        if manifest is None:
            if can_fetch(data):
                return Sources(None, origin)
            raise
        if recorded is None:
            raise UserError(
                f"{error}; what is prepared in {folder} is from "
                f"{manifest.known_origins(folder)[0].described(folder)}"
            ) from None
        missing = f"its pictures, which are not in {root_of(data)}"
        if data.csv is not None:
            missing = f"data.csv={data.csv}, which is not there"
        return Sources(None, origin, missing)
    if manifest is None:
        require_writable(folder)
    same_lists = recorded is not None and recorded.lists and recorded.lists == origin.lists
    if same_lists and not any(sample.path.exists() for sample in listing.all_samples):
        return Sources(None, origin, missing=f"the pictures, none of which is in {root_of(data)}")
    return Sources(listing, origin)


def prepare(recipe: Recipe, console: Console, sources: Sources | None = None) -> Prepared:
    """Fetch, list, convert and store the pictures of a recipe.

    ``sources`` is what ``list_sources(recipe)`` returned, if that was called. Does nothing where
    the folder is right already. May be killed at any time, and run twice at once. Raises UserError:
    no pictures, bad ones (``data.on_bad=error``), no space, no right to write, a folder that holds
    anything else, or what another place's pictures were prepared to.
    """
    data = recipe.data
    folder = prepared_folder(data)

    # List the pictures; those that are nowhere are fetched, or must be prepared already.
    sources = sources or list_sources(recipe)
    if sources.missing:
        manifest = existing_manifest(folder, data)
        damage = find_damage(folder, manifest, data, console) if manifest is not None else ""
        if damage:
            raise UserError(f"{damage}; to prepare it again, put back {sources.missing}")
        print_plain(console, f"already prepared: {folder}; not compared with {sources.missing}")
        return open_prepared(recipe)
    if sources.listing is None:
        fetch_dataset(data, partial(print_plain, console))
        sources = list_sources(recipe)
        assert sources.listing is not None
    listing = sources.listing

    # A link to a folder on another disk, perhaps: the link stays, and the folder is written.
    place = behind_link(folder)
    with sole_writer(place, console) as alone, quiet_pictures():
        # Compare them with what is prepared. Before any picture is read: one that changes
        # meanwhile must look changed next time.
        with counting(console, "looking at pictures", len(listing.all_samples)) as progress:
            stamp = sources_hash(listing, progress)
        origin = sources.origin.model_copy(update={"sources": stamp})
        manifest = existing_manifest(folder, data)
        origins: list[Origin] | None = [origin]
        if manifest is not None:
            origins = origins_to_write(folder, manifest, listing, origin, data, console)

        # Store them in a new folder, which replaces the old one. One that was begun with the same
        # pictures in the same way is gone on with.
        key = _work_key(data, stamp) if alone and origins is not None else None
        if alone:
            remove_leftovers(place, key)
        if origins is not None:
            require_nothing_else(folder)
            with new_folder(place, key) as scratch:
                require_store_space(scratch, listing.all_samples, data)
                manifest = _fill(scratch, listing, origins, data, console)
            for split in (manifest.train, manifest.test):  # were read back while they were hashed
                remember(folder / split.file, split.sha256)
    return open_prepared(recipe)


def _fill(
    folder: Path, listing: Listing, origins: Sequence[Origin], data: Data, console: Console
) -> Manifest:
    """Fill an empty folder with stores, lists and, last of all, the manifest, which it returns.

    ``origins`` are the places that have these pictures, the last one that of the listing.
    """
    # Read, check, resize and store each picture; those of validation are the last of train.
    show = partial(counting, console)
    with (
        Journal(folder / "train", listing.train_store, show) as train,
        Journal(folder / "test", listing.test, show) as test,
    ):
        done, total = len(train.done) + len(test.done), len(listing.all_samples)
        if done:
            print_plain(console, f"going on: {done:,} of {total:,} pictures are stored already")
        try:
            stores = {
                "train": _store(folder / "train", train, listing.train_store, data, console),
                "test": _store(folder / "test", test, listing.test, data, console),
            }
        except KeyboardInterrupt:
            print_plain(
                console,
                f"stopped: {len(train) + len(test):,} of {total:,} pictures are stored; the same "
                "command goes on with the others",
            )
            raise

        # Refuse bad pictures, only now, so that the list of them is complete.
        bad = [*train.bad, *test.bad]
        if bad and data.on_bad == "error":
            raise UserError(_complaint(bad, total))
        cut = len(listing.train)
        validation = int((stores["train"].kept >= cut).sum())
        _require_some(listing, stores, validation)

        # Write the lists beside the stores, for people.
        duplicates = write_lists(folder, listing, train, test)
        splits = [train.stored(0, cut), test.stored()]
        splits += [train.stored(cut)] if validation else []
        entries = (
            ((one.sample.label, one.sample.domain, one.content) for one in split)
            for split in splits
        )
        contents = fingerprint(data, listing.classes, listing.domains, entries)
        brightest = np.concatenate([train.brightest(), test.brightest()])

        # Write the manifest: what was stored, from where and how. With it the folder counts.
        manifest = Manifest(
            adafilter=__version__,
            settings=settings_of(data),
            fingerprint=contents,
            sources=origins[-1].sources,
            decoding=DECODING,
            root=listing.root,
            origins=list(origins),
            classes=listing.classes,
            domains=listing.domains,
            train=_entry(stores["train"]),
            test=_entry(stores["test"]),
            validation=validation,
            skipped=len(bad),
            duplicates=duplicates,
            notes=[*listing.notes, *dark_notes(brightest)],
        )
        manifest.write(folder)
        train.remove()
        test.remove()
    return manifest


def _store(
    path: Path, journal: Journal, samples: Sequence[Sample], data: Data, console: Console
) -> Written:
    """Store the pictures of a split that its journal does not have yet."""
    reader, done = PictureReader(samples, data.stored_size, data.stored_format), len(journal.done)
    with ExitStack() as shown:
        storing = counting(console, f"storing {path.name}", len(samples) - done)
        progress = shown.enter_context(storing)

        def hashing(what: str, total: int) -> AbstractContextManager[Done]:
            shown.close()  # a terminal has one bar at a time
            return counting(console, what, total, unit="MiB")

        return write_store(
            path,
            reader,
            domains=reader.domains,
            format=data.stored_format,
            jpeg_quality=data.jpeg_quality,
            num_workers=data.num_workers or cpus_of_rank(),
            progress=lambda position: progress(position - done),
            done=journal.done,
            written=lambda place: journal.add(place, reader.take(len(journal))),
            hashing=hashing,
        )


def _work_key(data: Data, sources: str) -> str:
    """Names an unfinished folder: all that the bytes of its stores depend on."""
    libraries = [__version__, DECODING, PIL.__version__, features.version("jpg")]
    all_of = [settings_of(data), sources, libraries, sorted(picture_formats())]
    return hashlib.sha256(json.dumps(all_of, sort_keys=True).encode()).hexdigest()[:16]


def _complaint(bad: Sequence[tuple[Sample, str]], total: int) -> str:
    lines = [f"{len(bad):,} of {total:,} pictures cannot be used:"]
    lines += [f"  {printable(sample.path)}: {reason}" for sample, reason in bad[:_BAD_SHOWN]]
    if len(bad) > _BAD_SHOWN:
        lines.append(f"  ... and {len(bad) - _BAD_SHOWN:,} more")
    lines.append("mend or remove them, or go on without them: data.on_bad=skip")
    return "\n".join(lines)


def _require_some(listing: Listing, stores: dict[str, Written], validation: int) -> None:
    """UserError where so many pictures are bad that a class or a split has none."""
    labels = stores["train"].labels
    counts = np.bincount(labels[: len(labels) - validation], minlength=len(listing.classes))
    for name, count in zip(listing.classes, counts, strict=True):
        if not count:
            raise UserError(f"{listing.root}: every training picture of class {name!r} is bad")
    if not len(stores["test"].labels):
        raise UserError(f"{listing.root}: every test picture is bad; mend some")
    if listing.validation and not validation:
        raise UserError(
            f"{listing.root}: every validation picture is bad; mend some, or remove them all: then "
            "data.val_fraction of the training pictures is drawn"
        )


def _entry(written: Written) -> StoredSplit:
    return StoredSplit(
        file=written.path.name,
        size=written.size,
        sha256=written.sha256,
        pictures=len(written.labels),
    )
