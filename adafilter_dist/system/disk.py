"""Room on disk and in /dev/shm: how much is free, and what is said where that is too little.

Imports nothing but the standard library: `adafilter doctor` runs where the rest is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from adafilter_dist.errors import UserError

ENOUGH = 2**30
"""Bytes of /dev/shm. Docker gives a container 64 MiB; NCCL takes tens of them per pair of GPUs."""


def existing_parent(path: Path) -> Path:
    """``path`` or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def gib(size: float) -> str:
    """Bytes for people, in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def free_space(folder: Path) -> int:
    """Bytes that are free where ``folder`` lies or will lie."""
    return shutil.disk_usage(existing_parent(folder)).free


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # another process has just renamed it
                total += (Path(place) / name).stat().st_size
    return total


def no_space(folder: Path, needed: float, what: str) -> str:
    """What is said where ``needed`` bytes for ``what`` do not fit."""
    return (
        f"{folder}: no space for {what}: {gib(needed)} are needed, "
        f"{gib(free_space(folder))} are free"
    )


def require_space(folder: Path, needed: float, what: str, advice: str) -> None:
    """UserError, with ``advice``, unless ``needed`` bytes are free where ``folder`` will lie."""
    if free_space(folder) < needed:
        raise UserError(f"{no_space(folder, needed, what)}; {advice}")


def shared_memory(place: Path = Path("/dev/shm")) -> tuple[int, int] | None:
    """(total, free) bytes, None where there is no such place."""
    if not place.is_dir():
        return None
    usage = shutil.disk_usage(place)
    return usage.total, usage.free


def shortage(total: int, free: int) -> str | None:
    """What is short for NCCL and what to do, None where nothing is."""
    if total < ENOUGH:
        return f"{gib(total)}; NCCL needs more: docker run --shm-size=8g"
    if free < ENOUGH:
        return f"{gib(free)} of {gib(total)} free; NCCL needs more: remove what ended jobs left"
    return None
