"""Making a prepared folder: once, whole or not at all, and only when something changed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from adafilter_dist import atomic
from adafilter_dist.data.datasets import fetch_dataset, list_dataset
from adafilter_dist.data.fingerprint import fingerprint, sources_hash
from adafilter_dist.data.intake import content_hash
from adafilter_dist.data.listing import Listing
from adafilter_dist.data.lock import exclusive
from adafilter_dist.data.manifest import Manifest, read_manifest
from adafilter_dist.data.pool import WorkerPool, default_workers
from adafilter_dist.data.prepared import (
    Prepared,
    damage_of,
    open_prepared,
    other_settings,
    prepared_folder,
)
from adafilter_dist.data.progress import counting
from adafilter_dist.data.space import require_space
from adafilter_dist.data.writing import write_folder
from adafilter_dist.errors import UserError
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.recipe.schema import Data, Recipe


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Fetch, list, convert and store the pictures of a recipe.

    Does nothing where the folder is right already. May be killed at any time, and run twice at
    once. Raises UserError: no pictures, bad ones (``data.on_bad=error``), no space, no right to
    write, a folder that holds something else.
    """
    data = recipe.data
    folder = prepared_folder(data)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    try:
        listing = list_dataset(data)
    except UserError as absent:
        if _present(folder, data) is not None:
            say(f"already prepared: {folder}; not compared with its pictures: {absent}")
            return open_prepared(recipe)
        fetch_dataset(data, say)
        listing = list_dataset(data)
    with _explained(folder), _quiet_pictures():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with exclusive(lock, lambda: say(f"waiting for another prepare of {folder}")) as alone:
            if alone:
                _remove_leftovers(folder)
            present = _present(folder, data)
            if present is not None and _is_current(present, listing, folder, data, console):
                say(f"already prepared: {folder}")
            else:
                _replace(folder, listing, data, console)
    return open_prepared(recipe)


def _present(folder: Path, data: Data) -> Manifest | None:
    """The manifest of a sound folder; None where there is nothing of use.

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
    return None if damage_of(folder, manifest) else manifest


def _is_current(
    present: Manifest, listing: Listing, folder: Path, data: Data, console: Console
) -> bool:
    """Whether the folder was made of just these pictures; reads them only if their times differ."""
    sources = sources_hash(listing)
    if present.sources == sources:
        return True
    samples = [*listing.train, *listing.test, *listing.validation]
    workers = data.num_workers or default_workers()
    hashes: list[tuple[int, bytes]] = []
    try:
        with (
            counting(console, "comparing pictures", len(samples)) as progress,
            WorkerPool(workers) as pool,
        ):
            for sample, content in zip(
                samples, pool.map(content_hash, samples, ahead=4 * workers), strict=True
            ):
                hashes.append((sample.label, content))
                progress(len(hashes))
    except BadPicture:
        return False
    test, end = len(listing.train), len(listing.train) + len(listing.test)
    splits = [hashes[:test], hashes[test:end], *([hashes[end:]] if listing.validation else [])]
    if fingerprint(data, listing.classes, splits) != present.fingerprint:
        return False
    # Copied or touched, but the same pictures: next time the quick look is enough again.
    present.model_copy(update={"sources": sources, "root": listing.root}).write(folder)
    return True


def _replace(folder: Path, listing: Listing, data: Data, console: Console) -> None:
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    scratch = folder.with_name(f".{folder.name}.tmp-{unique}")
    old = folder.with_name(f".{folder.name}.old-{unique}")
    try:
        scratch.mkdir()
        require_space(scratch, [*listing.train_store, *listing.test], data)
        write_folder(scratch, listing, data, console)
        atomic.fsync_folder(scratch)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        atomic.fsync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed prepare left; only the holder of the lock may."""
    for path in folder.parent.iterdir():
        if path.name.startswith((f".{folder.name}.tmp-", f".{folder.name}.old-")):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _quiet_pictures() -> Iterator[None]:
    """Without the warnings of broken EXIF blocks and odd palettes: they do no harm to the pixels.

    Around everything, because the filters are the process's and not a thread's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
            f"{where}: cannot be written ({error.strerror}); set data.prepared to a folder of yours"
        ) from None
