"""Makes a prepared folder: whole or not at all, and only when something changed."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from adafilter_dist.data.prepare.compare import same_pictures
from adafilter_dist.data.prepare.space import require_store_space
from adafilter_dist.data.prepare.write_folder import write_folder
from adafilter_dist.data.sources.datasets import can_fetch, fetch_dataset, is_there, list_dataset
from adafilter_dist.data.sources.download import Say
from adafilter_dist.data.sources.fingerprint import sources_hash
from adafilter_dist.data.sources.listing import Listing, Sample, root_of
from adafilter_dist.data.sources.origin import Origin, changed_list, origin_of
from adafilter_dist.data.stored.manifest import Manifest, read_manifest
from adafilter_dist.data.stored.prepared import (
    Prepared,
    damage_of,
    open_prepared,
    other_settings,
    prepared_folder,
)
from adafilter_dist.data.stored.verification import DamagedStore, remember, verify
from adafilter_dist.errors import UserError
from adafilter_dist.pictures.reading import DECODING
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system import files
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.disk import existing_parent
from adafilter_dist.system.lock import exclusive


@dataclass(frozen=True)
class Look:
    """What ``prepare`` starts from: a listing, or why there is none; ``ours`` is where it is from.

    Without a listing the pictures are fetched first, or what is prepared is left as it is: then
    ``missing`` says what it cannot be compared with.
    """

    listing: Listing | None
    ours: Origin
    missing: str = ""


def look(recipe: Recipe) -> Look:
    """List the pictures, and check whether the prepared folder has to be written.

    Opens no network and writes nothing. Raises UserError for everything that this shows.
    """
    data = recipe.data
    folder = prepared_folder(data)
    ours = origin_of(data, folder)  # first: a list that changes while it is read must look changed
    manifest = _present(folder, data)
    known = _known(folder, manifest, ours) if manifest else None
    try:
        listing = list_dataset(data)
    except UserError as error:
        if is_there(data):
            raise
        if manifest is None:
            if can_fetch(data):
                return Look(None, ours)
            raise
        if known is None:
            raise UserError(
                f"{error}; what is prepared in {folder} is from "
                f"{manifest.known_origins(folder)[0].described(folder)}"
            ) from None
        return Look(None, ours, missing=_missing(data))
    if manifest is None:
        _require_writable(folder)
    same_lists = known is not None and known.lists and known.lists == ours.lists
    if same_lists and not any(sample.path.exists() for sample in _samples(listing)):
        return Look(None, ours, missing=f"the pictures, none of which is in {root_of(data)}")
    return Look(listing, ours)


def _missing(data: Data) -> str:
    if data.csv is not None:
        return f"data.csv={data.csv}, which is not there"
    return f"its pictures, which are not in {root_of(data)}"


def prepare(recipe: Recipe, console: Console, start: Look | None = None) -> Prepared:
    """Fetch, list, convert and store the pictures of a recipe; ``start`` is ``look(recipe)``.

    Does nothing where the folder is right already. May be killed at any time, and run twice at
    once. Raises UserError: no pictures, bad ones (``data.on_bad=error``), no space, no right to
    write, a folder that holds something else, or what another place's pictures were prepared to.
    """
    data = recipe.data
    folder = prepared_folder(data)
    say = partial(print_plain, console)
    start = start or look(recipe)
    if start.missing:
        manifest = _present(folder, data)
        damage = _damage(folder, manifest, data, say) if manifest is not None else ""
        if damage:
            raise UserError(f"{damage}; to prepare it again, put back {start.missing}")
        say(f"already prepared: {folder}; not compared with {start.missing}")
        return open_prepared(recipe)
    if start.listing is None:
        fetch_dataset(data, say)
        start = look(recipe)
        assert start.listing is not None
    with _explained(folder), _quiet_pictures():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with exclusive(lock, lambda: say(f"waiting for another prepare of {folder}")) as alone:
            if alone:
                _remove_leftovers(folder)
            _settle(folder, start.listing, start.ours, data, console, say)
    return open_prepared(recipe)


def _settle(
    folder: Path, listing: Listing, ours: Origin, data: Data, console: Console, say: Say
) -> None:
    """Leave the folder as it is, note that it holds these pictures too, or write it."""
    # Before any picture is read: one that changes meanwhile must look changed next time.
    ours = ours.model_copy(update={"sources": sources_hash(listing)})
    manifest = _present(folder, data)
    if manifest is None:
        _replace(folder, listing, [ours], data, console)
        return
    known, origins = _known(folder, manifest, ours), _with(folder, manifest, ours)
    unchanged = (
        known is not None and known.sources == ours.sources and manifest.decoding == DECODING
    )
    if unchanged or same_pictures(manifest, listing, folder, data, console):
        damage = _damage(folder, manifest, data, say)
        if not damage:
            # Copied, moved or touched, but the same pictures: next time the quick look is enough.
            if known != ours or manifest.format == 1 or manifest.decoding != DECODING:
                _note(folder, manifest, ours)
            say(f"already prepared: {folder}")
            return
        say(f"{damage}: preparing again")
    else:
        others = [origin for origin in origins if origin is not ours]
        if known is None or others:
            of = (others or manifest.known_origins(folder))[0].described(folder)
            raise UserError(
                f"{folder}: holds the pictures of {of}, which are others than those of "
                f"{ours.described(folder)} now; choose another folder with data.prepared, or "
                "remove this one"
            )
        origins = [ours]
        say(f"{_changed(manifest, known, ours, data)}: preparing again")
    _replace(folder, listing, origins, data, console)


def _damage(folder: Path, manifest: Manifest, data: Data, say: Say) -> str:
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
        say(verified.line(str(folder)))
    return ""


def _known(folder: Path, manifest: Manifest, ours: Origin) -> Origin | None:
    """The manifest's entry for our place."""
    known = manifest.known_origins(folder)
    return next((origin for origin in known if origin.same_place(ours, folder)), None)


def _with(folder: Path, manifest: Manifest, ours: Origin) -> list[Origin]:
    """The origins in the manifest, with today's entry for our own place at the end."""
    others = [o for o in manifest.origins if not o.same_place(ours, folder)]
    return [*others, ours]


def _note(folder: Path, manifest: Manifest, ours: Origin) -> None:
    origins = _with(folder, manifest, ours)
    update = {"format": 2, "sources": ours.sources, "decoding": DECODING, "origins": origins}
    manifest.model_copy(update=update).write(folder)


def _changed(manifest: Manifest, known: Origin, ours: Origin, data: Data) -> str:
    """What changed at our own place."""
    if known.sources == ours.sources and manifest.decoding != DECODING:
        return f"adafilter {manifest.adafilter} read some of the pictures otherwise"
    changed = changed_list(known, data)
    if changed is not None:
        return f"{changed} changed"
    return f"the pictures of {ours.csv or root_of(data)} changed"


def _present(folder: Path, data: Data) -> Manifest | None:
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


def _samples(listing: Listing) -> list[Sample]:
    return [*listing.train_store, *listing.test]


def _replace(
    folder: Path, listing: Listing, origins: Sequence[Origin], data: Data, console: Console
) -> None:
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    scratch = folder.with_name(f".{folder.name}.tmp-{unique}")
    old = folder.with_name(f".{folder.name}.old-{unique}")
    try:
        scratch.mkdir()
        require_store_space(scratch, _samples(listing), data)
        written = write_folder(scratch, listing, data, console, origins)
        files.fsync_folder(scratch)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        files.fsync_folder(folder.parent)
        for split in (written.train, written.test):  # they were read back while they were hashed
            remember(folder / split.file, split.sha256)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_writable(folder: Path) -> None:
    above = existing_parent(folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}: cannot be written ({above} is not a folder that you may write to); set "
            "data.prepared to a folder of yours"
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed prepare left; only the holder of the lock may."""
    for path in folder.parent.iterdir():
        if path.name.startswith((f".{folder.name}.tmp-", f".{folder.name}.old-")):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _quiet_pictures() -> Iterator[None]:
    """Without the warnings of broken EXIF blocks and odd palettes: they do no harm to the pixels.

    Without Pillow's log of broken files too: they are listed. Around everything, because filters
    and loggers are the process's and not a thread's.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What the system refuses while the folder is written, as a UserError."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{where}: no space left while preparing; nothing half-written was kept; set "
                "data.prepared to a folder with more space"
            ) from None
        raise UserError(
            f"{where}: cannot be written ({error.strerror or error}); set data.prepared to a "
            "folder of yours"
        ) from None
