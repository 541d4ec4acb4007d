"""/dev/shm: how much there is, and whether NCCL can work with it.

Imports nothing but the standard library: `adafilter doctor` runs where the rest is missing. The
loaders decode in threads and need none of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_GIB = 1024**3
ENOUGH = _GIB
"""Bytes. Docker gives a container 64 MiB; NCCL alone takes tens of them per pair of GPUs."""


def shared_memory(place: Path = Path("/dev/shm")) -> tuple[int, int] | None:
    """(total, free) bytes, None where there is no such place."""
    if not place.is_dir():
        return None
    usage = shutil.disk_usage(place)
    return usage.total, usage.free


def shortage(total: int, free: int) -> str | None:
    """What is short for NCCL and what to do, None where nothing is."""
    size = f"{total / _GIB:.1f} GiB"
    if total < ENOUGH:
        return f"{size}; NCCL needs more: docker run --shm-size=8g"
    if free < ENOUGH:
        return f"{free / _GIB:.1f} of {size} free; NCCL needs more: remove what ended jobs left"
    return None
