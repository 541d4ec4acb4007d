"""Files that are whole or absent: write to a temporary name, fsync, rename, fsync the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make ``path`` and what is missing above it, each name durable."""
    # The last one always: whoever made it may have been killed before it was durable.
    missing = [path, *(place for place in path.parents if not place.exists())]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        fsync_folder(place.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, durably; a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """Like :func:`write_bytes`, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Like :func:`write_bytes`, as indented strict JSON (NaN is a ValueError)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
