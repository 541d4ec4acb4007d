"""Room on disk, asked for before it is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from adafilter_dist.errors import UserError


def existing_parent(path: Path) -> Path:
    """``path`` or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def gib(size: float) -> str:
    """Bytes for people, in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def require_space(folder: Path, needed: int, what: str, key: str) -> None:
    """UserError unless ``needed`` bytes are free where ``folder`` lies or will lie."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed:
        raise UserError(
            f"{folder}: no space: {what} needs {gib(needed)}, {gib(free)} are free; make room or "
            f"choose another place with {key}=PATH"
        )
