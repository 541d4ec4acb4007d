"""The folder that is written: there is room for it, by one process alone, whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Console

from adafilter_dist.data.prepare.read_pictures import read, stored_pixels
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.errors import UserError
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system import files
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.disk import existing_parent, require_space
from adafilter_dist.system.lock import exclusive

_LOOKED_AT = 32  # pictures, from which the size of all is estimated
_MARGIN = 1.2


def behind_link(folder: Path) -> Path:
    """Where ``folder`` lies, if it is a link; else ``folder``."""
    return Path(os.path.realpath(folder)) if folder.is_symlink() else folder


def require_writable(folder: Path) -> None:
    """UserError where the folder could not be made."""
    above = existing_parent(behind_link(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}: cannot be written ({above} is not a folder that you may write to); set "
            "data.prepared to a folder of yours"
        )


def require_store_space(place: Path, samples: Sequence[Sample], data: Data) -> None:
    """UserError if ``place`` has less free space than the stores are expected to take.

    The expectation is the mean of a few pictures spread over the data set, and a fifth more. What
    is in ``place`` already is taken off.
    """
    few = samples[:: max(1, len(samples) // _LOOKED_AT)]
    sizes = [size for sample in few if (size := _stored_bytes(sample, data)) is not None]
    if not sizes:
        return
    needed = _MARGIN * sum(sizes) / len(sizes) * len(samples)
    needed -= sum(path.stat().st_size for path in place.iterdir())
    advice = "set data.prepared to a folder with more space, or lower data.stored_size"
    if data.stored_format == "raw":
        advice += " or use data.stored_format=jpg"
    what = f"{len(samples):,} pictures of {data.stored_size} px"
    require_space(place, needed, what, advice)


@contextmanager
def sole_writer(folder: Path, console: Console) -> Iterator[bool]:
    """Keep other processes from writing the folder; waits for one that does so already.

    Yields False on a file system without locks, where others may write it too. What the system
    refuses inside is raised as a UserError.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        wait = partial(print_plain, console, f"waiting for another prepare of {folder}")
        with exclusive(lock, wait) as alone:
            yield alone
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


@contextmanager
def new_folder(folder: Path, key: str | None) -> Iterator[Path]:
    """Yields a folder beside ``folder``, which takes its place at the end.

    With a ``key``, it is the one that a killed process left under the same key, with all that is
    in it, and Ctrl-C leaves it again. Only the sole writer may give one. Where the block raises
    anything else, the new folder is removed; the old one stays.
    """
    unique = key or f"{os.getpid()}-{secrets.token_hex(4)}"
    scratch = folder.with_name(f".{folder.name}.tmp-{unique}")
    old = folder.with_name(f".{folder.name}.old-{unique}")
    keep = False
    try:
        scratch.mkdir(exist_ok=key is not None)
        for path in scratch.glob(".*.tmp"):  # files that were half-written
            path.unlink()
        yield scratch
        files.fsync_folder(scratch)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        files.fsync_folder(folder.parent)
    except KeyboardInterrupt:
        keep = key is not None
        raise
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path, key: str | None = None) -> None:
    """Remove what killed processes left, but for that of the key; only the sole writer may."""
    left, kept = (f".{folder.name}.tmp-", f".{folder.name}.old-"), f".{folder.name}.tmp-{key}"
    for path in folder.parent.iterdir():
        if path.name.startswith(left) and path.name != kept:
            shutil.rmtree(path, ignore_errors=True)


def _stored_bytes(sample: Sample, data: Data) -> int | None:
    try:
        pixels = stored_pixels(read(sample), data.stored_size)
    except BadPicture:
        return None
    if data.stored_format == "raw":
        return pixels.size
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=data.jpeg_quality)
    return encoded.tell()
