"""/dev/shm: how much there is, and whether NCCL can work with it.

Imports nothing but the standard library: `adafilter doctor` runs where the rest is missing. The
loaders decode in threads and need none of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from adafilter_dist.system.disk import gib

ENOUGH = 2**30
"""Bytes. Docker gives a container 64 MiB; NCCL alone takes tens of them per pair of GPUs."""


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
