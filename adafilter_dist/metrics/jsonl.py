"""Files of one JSON object a line: appended to by one process, readable after any crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adafilter_dist import atomic


def _plain(value: Any) -> Any:
    """JSON types only: numbers of numpy and torch become Python's, NaN and inf become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def encode(row: Mapping[str, Any]) -> str:
    """One line, without its end; TypeError for what JSON cannot say."""
    return json.dumps(_plain(row), allow_nan=False, separators=(",", ":"))


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Lines that were written whole. A line without its end may be half a number: it is torn."""
    if not path.exists():
        return []
    *ended, _ = path.read_bytes().split(b"\n")
    return [(line, row) for line in ended if (row := _decode(line)) is not None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a file; none if it does not exist. Torn lines are left out."""
    return [row for _, row in _whole_lines(path)]


def _rewrite(path: Path, lines: list[bytes]) -> None:
    content = b"".join(line + b"\n" for line in lines)
    if path.exists() and path.read_bytes() != content:
        atomic.write_bytes(path, content)


def repair(path: Path) -> None:
    """Drop torn lines by an atomic rewrite, so that the next row starts on a line of its own."""
    _rewrite(path, [line for line, _ in _whole_lines(path)])


def cut_after(path: Path, step: int) -> None:
    """Drop torn lines and rows whose ``step`` is past ``step``, by an atomic rewrite.

    For a run that resumes from the checkpoint of ``step``: no step appears twice.
    """
    _rewrite(path, [line for line, row in _whole_lines(path) if row.get("step", 0) <= step])


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row and wait until it is on disk; a torn last line is dropped first."""
    repair(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(encode(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


class JsonLines:
    """A file kept open to append rows to; each is in the file when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        repair(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; NaN and inf are written as null."""
        self._file.write(encode(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()
