"""Writes a checkpoint to disk so that it is there whole or not at all. Imports no torch.

Temporary folder, fsync of each file, of the manifest and of the folder, a look whether the run is
still ours, rename, fsync of the parent. Whoever takes a run over removes the temporary folders of
all before him, so that a rename which was decided on earlier finds nothing to rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafilter_dist.run.ownership import LostRunError, Ownership
from adafilter_dist.system.files import fsync_folder
from adafilter_dist.system.sealed_files import write_durable, write_manifest, write_record

FORMAT = 1
FROZEN_COPIES = ("frozen.0.safetensors", "frozen.1.safetensors")


def folder_name(step: int) -> str:
    """The name of the checkpoint at ``step``; names sort as steps do."""
    return f"step-{step:09d}"


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds: files as bytes, state.json, and what joins the manifest.

    ``frozen`` is the manifest entry of the frozen weights, or their bytes where the two copies
    have to be written; None where nothing is frozen.
    """

    step: int
    images: Mapping[str, memoryview]
    record: Mapping[str, Any]
    about: Mapping[str, Any]
    frozen: memoryview | Mapping[str, Any] | None


@dataclass(frozen=True)
class Published:
    """The folder of a checkpoint, its bytes, and the manifest entry of the frozen weights."""

    folder: Path
    size: int
    frozen: Mapping[str, Any] | None


def publish(
    ownership: Ownership, content: Content, *, keep: int, files_to_sync: Sequence[Path] = ()
) -> Published:
    """Write a checkpoint, then drop all but the newest ``keep``.

    ``files_to_sync`` are made durable first: what they say belongs to the steps before. Raises
    OSError where the disk refuses and LostRunError where the run is no longer ours; the checkpoints
    before stay.
    """
    place = ownership.files.checkpoints
    target = place / folder_name(content.step)
    temporary = place / f".{target.name}.{ownership.attempt}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        entry = _frozen(ownership, content)
        temporary.mkdir()
        files = {name: write_durable(temporary / name, i) for name, i in content.images.items()}
        files["state.json"] = write_record(temporary / "state.json", content.record)
        manifest = {
            **content.about,
            "format": FORMAT,
            "step": content.step,
            "attempt": ownership.attempt,
            "files": files,
            "frozen": entry,
        }
        write_manifest(temporary / "manifest.json", manifest)
        fsync_folder(temporary)
        for path in files_to_sync:
            _sync(path)
        ownership.check()
        if target.exists():
            _rename_aside(target)  # it was found damaged, or this run would have gone on from it
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(place)
    _tidy(ownership, place, target.name, keep)
    return Published(target, sum(file["size"] for file in files.values()), entry)


def set_aside_after(ownership: Ownership, step: int) -> None:
    """Rename the checkpoints after ``step``, from which an attempt resumes, to bad-...

    They were found damaged. They must not count as kept, nor be taken for the newest again.
    """
    place = ownership.files.checkpoints
    for bad in sorted(place.glob("step-*")):
        if bad.name > folder_name(step):
            ownership.check()
            _rename_aside(bad)


def _frozen(ownership: Ownership, content: Content) -> Mapping[str, Any] | None:
    if not isinstance(content.frozen, memoryview):
        return content.frozen
    place = ownership.files.checkpoints
    entry: Mapping[str, Any] | None = None
    for name in FROZEN_COPIES:
        temporary = place / f".{name}.{ownership.attempt}.tmp"
        try:
            entry = write_durable(temporary, content.frozen)
            ownership.check()
            temporary.rename(place / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    # Before the checkpoint that needs them: its name must not arrive without theirs.
    fsync_folder(place)
    return entry


def _rename_aside(folder: Path) -> None:
    folder.rename(_free_name(folder.with_name(f"bad-{folder.name}")))


def _tidy(ownership: Ownership, place: Path, newest: str, keep: int) -> None:
    """Leave the newest ``keep``, and none after this one.

    There are such where --allow-mismatch made batches larger, and steps fewer. Best effort: this
    one is published, and the next one tries again.
    """
    with contextlib.suppress(OSError, LostRunError):
        steps = sorted(place.glob("step-*"))
        for later in (folder for folder in steps if folder.name > newest):
            ownership.check()
            _rename_aside(later)
        for old in [folder for folder in steps if folder.name <= newest][:-keep]:
            ownership.check()
            # Renamed first: a half-deleted folder must not look like a checkpoint.
            gone = _free_name(old.with_name(f".{old.name}.gone"))
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(path: Path) -> Path:
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
