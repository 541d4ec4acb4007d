"""Files of one JSON object a line: appended to by one process, readable after any crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adafilter_dist.system import files
from adafilter_dist.system.json_files import Row, whole


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


def _decode(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _whole_lines(path: Path) -> tuple[list[tuple[bytes, Row]], int]:
    """Lines that were written whole, and how many were not.

    A line without its end may be half a number: it is torn.
    """
    try:
        *ended, rest = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    good = [(line, row) for line in ended if (row := _decode(line)) is not None]
    return good, len(ended) - len(good) + bool(rest)


def read_lines(path: Path) -> list[Row]:
    """All whole rows of a file; none if it does not exist. Torn lines are left out."""
    return [row for _, row in _whole_lines(path)[0]]


def read_rows(path: Path, problems: list[str]) -> list[Row]:
    """Like :func:`read_lines`; torn lines and a file that cannot be read become a problem."""
    try:
        lines, torn = _whole_lines(path)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    if torn:
        problems.append(f"{path.name} has {torn} torn line{'s' if torn > 1 else ''}")
    return [row for _, row in lines]


def _join(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def repair(path: Path) -> None:
    """Drop torn lines by an atomic rewrite, so that the next row starts on a line of its own."""
    content = _join([line for line, _ in _whole_lines(path)[0]])
    if path.exists() and path.read_bytes() != content:
        files.write_bytes(path, content)


def cut_after(path: Path, step: int, evaluated: int | None = None, *, ending: bool = False) -> None:
    """Drop what a run that goes on from the checkpoint of ``step`` will write again.

    These are torn lines, rows past ``step``, evaluations of epochs from ``evaluated`` on (they come
    after the checkpoint of their step), and where the run is only ``ending`` that of the test set.
    Always an atomic rewrite: a process that still has the old file open writes into nothing.
    """

    def stays(row: dict[str, Any]) -> bool:
        if (whole(row, "step") or 0) > step:
            return False
        if row.get("kind") != "evaluation" or evaluated is None:
            return True
        return (whole(row, "epoch") or 0) < evaluated and not (
            ending and row.get("split") == "test"
        )

    if path.exists():
        files.write_bytes(path, _join([line for line, row in _whole_lines(path)[0] if stays(row)]))


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row and wait until it is on disk; a torn last line is dropped first."""
    repair(path)
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(encode(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        files.fsync_folder(path.parent)


class JsonLines:
    """A file kept open to append rows to; each is in the file when ``write`` returns.

    A row that the disk refuses is kept and tried again with the next; ``trouble`` says why then.
    """

    def __init__(self, path: Path) -> None:
        repair(path)
        new = not path.exists()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if new:
            files.fsync_folder(path.parent)
        self._end = os.fstat(self._descriptor).st_size
        self._kept = b""
        self._closed = False
        self.trouble: str | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; NaN and inf are written as null."""
        self._kept += encode(row).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        written = 0
        try:
            while written < len(self._kept):
                # At a place of our own counting: half a row that fitted is written over.
                written += os.pwrite(self._descriptor, self._kept[written:], self._end + written)
        except OSError as error:
            self.trouble = str(error)
        else:
            self._end, self._kept, self.trouble = self._end + written, b"", None

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._flush()
            os.close(self._descriptor)
