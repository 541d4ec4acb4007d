"""Whether the stores are still what `prepare` wrote: sha256, once a node and version of a file.

What was verified is remembered below the cache folder, by host: a file that has the size, times and
inode that it had then is not read again. Where the cache folder cannot be written, files are read
at every start.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafilter_dist.data.stored.manifest import Manifest
from adafilter_dist.errors import UserError
from adafilter_dist.system import files
from adafilter_dist.system.cache_folder import cache_folder
from adafilter_dist.system.disk import gib
from adafilter_dist.system.json_files import read_object
from adafilter_dist.system.sealed_files import sha256_of

_REMEMBERED = 200  # files; at each multiple of it, what is gone from the disk is forgotten

Beat = Callable[[int, int], None]
"""Called every few MiB with (bytes done, bytes in all); what it raises ends the reading."""


class DamagedStore(UserError):
    """A store that is not what `prepare` wrote; ``path`` is the file, ``what`` is wrong with it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged: {what}")


@dataclass(frozen=True)
class Verified:
    """What was read: bytes, seconds, and why it is not remembered (empty where it is)."""

    size: int
    seconds: float
    cache_error: str = ""

    def line(self, of: str) -> str:
        """``of`` verified, how fast."""
        rate = f", {gib(self.size / self.seconds)}/s" if self.seconds >= 0.1 else ""
        note = f"; not remembered: {self.cache_error}" if self.cache_error else ""
        return f"{of} verified: {gib(self.size)} in {self.seconds:.1f} s{rate}{note}"


def verify(
    folder: Path, manifest: Manifest, *, always: bool, beat: Beat = lambda done, total: None
) -> Verified | None:
    """Compare both stores in ``folder`` with their recorded sha256; None where nothing was read.

    A file that was verified on this node and did not change is left out, unless ``always``. Raises
    DamagedStore, and OSError where a file cannot be read.
    """
    files = [(folder / split.file, split.sha256) for split in (manifest.train, manifest.test)]
    todo = [(path, sha256) for path, sha256 in files if always or not _known(path, sha256)]
    if not todo:
        return None
    began, done, cache_error = time.monotonic(), 0, ""
    total = sum(path.stat().st_size for path, _ in todo)
    for path, sha256 in todo:
        before = _seen(path)

        def progress(read: int, start: int = done) -> None:
            beat(start + read, total)

        digest = sha256_of(path, progress)
        done += before["size"]
        if digest != sha256:
            forget(path)
            raise DamagedStore(path, "its sha256 is not the recorded one")
        cache_error = remember(path, sha256, before) or cache_error
    return Verified(done, time.monotonic() - began, cache_error)


def remember(path: Path, sha256: str, seen: dict[str, Any] | None = None) -> str:
    """Note that a file, as it was ``seen`` (by default as it is now), has this sha256.

    Returns why it could not be noted, empty where it was.
    """
    place = _place(path)
    try:
        if read_object(place, []) == {"path": str(path), "sha256": sha256, **(seen or _seen(path))}:
            return ""
        place.parent.mkdir(parents=True, exist_ok=True)
        _forget_what_is_gone(place.parent)
        note = {"path": str(path), "sha256": sha256, **(seen or _seen(path))}
        files.write_json(place, note)
    except OSError as error:
        return f"{place.parent} cannot be written ({error.strerror})"
    return ""


def forget(path: Path) -> None:
    """Have the file read again, whatever was noted of it."""
    with suppress(OSError):
        _place(path).unlink(missing_ok=True)


def _known(path: Path, sha256: str) -> bool:
    note = read_object(_place(path), [])
    try:
        return note == {"path": str(path), "sha256": sha256, **_seen(path)}
    except OSError:
        return False


def _seen(path: Path) -> dict[str, Any]:
    """What changes with the file: a byte that is written changes both times."""
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _place(path: Path) -> Path:
    """Where a file is noted: one file each, so that processes need not wait for one another."""
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return cache_folder() / "verified" / socket.gethostname() / f"{name}.json"


def _forget_what_is_gone(folder: Path) -> None:
    notes = list(folder.glob("*.json"))
    if notes and len(notes) % _REMEMBERED == 0:  # not at each note: all are read for it
        for place in _gone(notes):
            place.unlink(missing_ok=True)


def _gone(notes: Iterable[Path]) -> Iterable[Path]:
    for place in notes:
        path = read_object(place, []).get("path")
        if not isinstance(path, str) or not Path(path).exists():
            yield place
