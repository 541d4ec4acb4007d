"""A copy of the prepared files on a disk of the node: read there instead of over the network.

One process a node copies; another job that wants the same waits for it. A copy has the sizes and
sha256 that ``prepare`` recorded, read back from the disk before it gets its name, and is used again
by later starts on the node after a quick look. Nothing that is not ours is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adafilter_dist.data.stored.manifest import Manifest, StoredSplit, read_manifest
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.verification import DamagedStore, forget
from adafilter_dist.system.disk import free_space, no_space
from adafilter_dist.system.files import fsync_folder, make_folder, write_json
from adafilter_dist.system.lock import exclusive
from adafilter_dist.system.sealed_files import sha256_of

RECORD = "staged.json"
_CHUNK = 1 << 22
_FLUSHED = 1 << 28  # so that no write keeps the process for long
_LEFT_FREE = 1 << 26

Beat = Callable[[int, int], None]
"""Called every few MiB with (bytes done, bytes in all); what it raises ends the copying."""


class NotStaged(Exception):
    """Why there is no copy, in a few words; the shared files are there to be read."""


@dataclass(frozen=True)
class Copy:
    """Where the copy lies, and whether it had been there before."""

    folder: Path
    reused: bool


def expanded(stage_to: str) -> Path:
    """The folder that ``data.stage_to`` means on this node; NotStaged if it means none."""
    text = os.path.expandvars(os.path.expanduser(stage_to))
    unset = re.findall(r"\$\{?(\w+)", text)
    if unset:
        raise NotStaged(f"{', '.join(unset)} is not set there")
    if not os.path.isabs(text):
        raise NotStaged(f"{text} is not an absolute path")
    return Path(text)


def copy_folder(place: Path, manifest: Manifest) -> Path:
    """Where the copy of these very files lies in ``place``: <fingerprint>-<8 hex of the files>."""
    files = hashlib.sha256((manifest.train.sha256 + manifest.test.sha256).encode())
    return place / f"{manifest.fingerprint}-{files.hexdigest()[:8]}"


def stage(prepared: Prepared, place: Path, beat: Beat, *, whole: bool = False) -> Copy:
    """Have a good copy of the prepared files in ``place``; ``whole``: read one that is there.

    Raises NotStaged where there can be none, UserError where the shared files are damaged.
    """
    manifest = read_manifest(prepared.folder)
    if manifest is None:
        raise NotStaged(f"{prepared.folder} has no manifest any more")
    folder = copy_folder(place, manifest)
    total = 2 * sum(split.size for split in (manifest.train, manifest.test))  # written, read back
    try:
        make_folder(place)
        lock = place / f".{folder.name}.lock"
        with exclusive(lock, lambda: None, lambda: beat(0, total)) as locked:
            if is_good(folder, manifest, whole=whole, beat=lambda done: beat(done, total)):
                return Copy(folder, reused=True)
            _copy(prepared.folder, folder, manifest, lambda done: beat(done, total), alone=locked)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"no space ({reason})"
        raise NotStaged(f"{place}: {reason}") from None
    return Copy(folder, reused=False)


def is_good(
    folder: Path,
    manifest: Manifest,
    *,
    whole: bool = False,
    beat: Callable[[int], None] = lambda done: None,
) -> bool:
    """Whether the copy is whole, by a quick look: sizes, times, and the digests it was made with.

    With ``whole``, and where it belongs to somebody else, all of it is read.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        for split in (manifest.train, manifest.test):
            path = folder / split.file
            if record.get(split.file) != _seen(path, split) or path.stat().st_size != split.size:
                return False
            own = folder.stat().st_uid == os.getuid()
            if (whole or not own) and sha256_of(path, beat) != split.sha256:
                return False
    except (OSError, ValueError, AttributeError):
        return False
    return True


def redirected(prepared: Prepared, folder: Path) -> Prepared:
    """The same data, read from the copy."""
    return replace(
        prepared,
        train_store=folder / prepared.train_store.name,
        test_store=folder / prepared.test_store.name,
    )


def _copy(
    source: Path, folder: Path, manifest: Manifest, beat: Callable[[int], None], *, alone: bool
) -> None:
    own = f".{folder.name}.{socket.gethostname()}."
    if alone:  # we hold the lock: what else of ours lies here is of the dead
        for left in folder.parent.glob(f"{own}*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
    splits = (manifest.train, manifest.test)
    needed = sum(split.size for split in splits) + _LEFT_FREE
    if free_space(folder.parent) < needed:
        raise NotStaged(no_space(folder.parent, needed, "a copy of the data"))
    temporary = folder.with_name(f"{own}{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        done, record = 0, {}
        for split in splits:
            _copy_file(source, temporary, split, done, beat)
            done += 2 * split.size
            record[split.file] = _seen(temporary / split.file, split)
        write_json(temporary / RECORD, record)
        _put(temporary, folder, manifest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(
    source: Path, to: Path, split: StoredSplit, before: int, beat: Callable[[int], None]
) -> None:
    done, digest = 0, hashlib.sha256()
    with (source / split.file).open("rb") as file, (to / split.file).open("xb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
            done += len(chunk)
            if done % _FLUSHED < _CHUNK:
                copy.flush()
                os.fsync(copy.fileno())
            beat(before + done)
        copy.flush()
        os.fsync(copy.fileno())
        with contextlib.suppress(OSError):  # what is read back is to come from the disk
            os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if digest.hexdigest() != split.sha256:
        forget(source / split.file)
        raise DamagedStore(source / split.file, "its sha256 is not the recorded one")
    written = sha256_of(to / split.file, lambda read: beat(before + done + read))
    if written != split.sha256:
        raise NotStaged(f"{to.parent}: what was written there reads back as something else")


def _put(temporary: Path, folder: Path, manifest: Manifest) -> None:
    """Give the copy its name; a damaged one in the way is put aside."""
    aside = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.old.tmp")
    for _ in range(2):
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if is_good(folder, manifest):
                return  # another process was faster, on a file system without locks
            folder.rename(aside)  # a job that reads it keeps what it has open
            continue
        fsync_folder(folder.parent)
        break
    shutil.rmtree(aside, ignore_errors=True)


def _seen(path: Path, split: StoredSplit) -> dict[str, Any]:
    """What is looked at before a copy is used again, and the digest that it was made with."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": split.sha256}
