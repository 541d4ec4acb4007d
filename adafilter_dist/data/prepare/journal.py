"""What has been stored of a split so far: a row a picture on disk, beside the unfinished store.

A `prepare` that was killed goes on behind the last good row. Rows are not synced: each has a
checksum, also of the picture in the store, as has each reason why a picture is left out. What a
machine lost when it stopped is made again.
With the rows on disk, the hashes of millions of pictures are not in memory.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.prepare.read_pictures import Learned, readable_again
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.data.stored.layout import PLACE, Places
from adafilter_dist.data.stored.store import intact
from adafilter_dist.system.progress import Counting, no_counting

_ENTRY = np.dtype(
    [
        ("place", PLACE),
        ("content", "<u1", 32),
        ("pixels", "<u1", 32),
        ("brightest", "<i4"),  # -1: it is not 16-bit gray
        ("check", "<u4"),
    ]
)
ENTRY_BYTES = _ENTRY.itemsize  # a row on disk
_AT_ONCE = 1 << 14  # rows


@dataclass(frozen=True)
class Stored:
    """A picture that went into the store, and the hashes of its source and of its pixels."""

    sample: Sample
    content: bytes
    pixels: bytes


class Journal:
    """The rows of one store, which begin with those that an earlier process left; a context.

    ``samples`` are those of the store in its order. ``counting`` shows how far these rows are
    compared with the store.
    """

    def __init__(
        self, store: Path, samples: Sequence[Sample], counting: Counting = no_counting
    ) -> None:
        self._samples = samples
        self._path = store.with_name(f"{store.name}.journal")
        self._reasons_path = store.with_name(f"{store.name}.reasons")
        self._reasons = self._known_reasons()
        places = self._known_places()
        with counting(f"checking what is stored of {store.name}", len(places)) as progress:
            self.done: Places = places[: intact(store, places, len(samples), progress)]
        self._length = len(self.done)
        left_out = set(np.flatnonzero(self.done["kept"] == 0).tolist())
        self._reasons = {at: why for at, why in self._reasons.items() if at in left_out}
        self._file = _open(self._path, self._length * ENTRY_BYTES)
        lines = "".join(_line(at, why) for at, why in self._reasons.items()).encode()
        self._reasons_path.write_bytes(lines)
        self._reasons_file = _open(self._reasons_path, len(lines))

    def add(self, place: Places, learned: Learned) -> None:
        """Note the next picture: its place in the store (1,), and what was learned of it."""
        if isinstance(learned, str):
            self._reasons[self._length] = learned
            _append(self._reasons_file, _line(self._length, learned).encode())
        entry = np.zeros(1, _ENTRY)
        entry["place"] = place
        if not isinstance(learned, str):
            entry["content"] = np.frombuffer(learned.content, np.uint8)
            entry["pixels"] = np.frombuffer(learned.pixels, np.uint8)
            entry["brightest"] = -1 if learned.brightest is None else learned.brightest
        entry["check"] = _check(entry.tobytes())
        _append(self._file, entry.tobytes())
        self._length += 1

    def __len__(self) -> int:
        return self._length

    @property
    def bad(self) -> list[tuple[Sample, str]]:
        """The pictures left out, and why."""
        return [(self._samples[at], why) for at, why in self._reasons.items()]

    def stored(self, first: int = 0, end: int | None = None) -> Iterator[Stored]:
        """The pictures in the store, in its order, among the samples from ``first`` to ``end``."""
        position = first
        for entries in self._entries(first, end):
            content, pixels = entries["content"].tobytes(), entries["pixels"].tobytes()
            for k, kept in enumerate(entries["place"]["kept"].tolist()):
                if kept:
                    part = slice(32 * k, 32 * k + 32)
                    yield Stored(self._samples[position + k], content[part], pixels[part])
            position += len(entries)

    def brightest(self) -> NDArray[np.int64]:
        """The largest value of each picture that is 16-bit gray."""
        values = [np.zeros(0, np.int64)]
        for entries in self._entries():
            kept = entries[(entries["place"]["kept"] != 0) & (entries["brightest"] >= 0)]
            values.append(kept["brightest"].astype(np.int64))
        return np.concatenate(values)

    def remove(self) -> None:
        """Remove its files: the store is whole."""
        self.close()
        self._path.unlink()
        self._reasons_path.unlink()

    def close(self) -> None:
        """Close its files."""
        self._file.close()
        self._reasons_file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _entries(self, first: int = 0, end: int | None = None) -> Iterator[NDArray[Any]]:
        end = self._length if end is None else end
        with self._path.open("rb") as file:
            file.seek(first * ENTRY_BYTES)
            for start in range(first, end, _AT_ONCE):
                count = min(_AT_ONCE, end - start)
                yield np.frombuffer(file.read(count * ENTRY_BYTES), _ENTRY)

    def _known_places(self) -> Places:
        """The places of all rows before the first that is torn or wrong."""
        if not self._path.exists():
            return np.zeros(0, PLACE)
        width = ENTRY_BYTES
        rows = min(self._path.stat().st_size // width, len(self._samples))
        places = np.zeros(rows, PLACE)
        position = 0
        for entries in self._entries(0, rows):
            content = memoryview(entries.tobytes())
            places[position : position + len(entries)] = entries["place"]
            for k, (check, kept) in enumerate(
                zip(entries["check"].tolist(), entries["place"]["kept"].tolist(), strict=True)
            ):
                right = check == _check(content[k * width : (k + 1) * width])
                if not right or not (kept or position + k in self._reasons):
                    return places[: position + k]
            position += len(entries)
        return places

    def _known_reasons(self) -> dict[int, str]:
        """Why pictures are left out, by their position; a torn or wrong line is none."""
        known: dict[int, str] = {}
        if not self._reasons_path.exists():
            return known
        for line in self._reasons_path.read_bytes().split(b"\n"):
            with suppress(ValueError, TypeError, IndexError, AttributeError):  # torn, garbage
                at, why, check = json.loads(line)
                right = check == _reason_check(at, why)
                if right and not readable_again(self._samples[at], why):
                    known[at] = why
        return known


def _open(path: Path, size: int) -> io.FileIO:
    """Opened behind its first ``size`` bytes, unbuffered: a row is the kernel's at once."""
    file = path.open("ab", buffering=0)
    file.truncate(size)
    return file


def _append(file: io.FileIO, content: bytes) -> None:
    """Write all of it, as the kernel may take a part only; a nearly full disk does."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _check(entry: bytes | memoryview) -> int:
    return zlib.crc32(entry[: -_ENTRY["check"].itemsize])


def _line(position: int, reason: str) -> str:
    return json.dumps([position, reason, _reason_check(position, reason)]) + "\n"


def _reason_check(position: int, reason: str) -> int:
    return zlib.crc32(f"{position} {reason}".encode("utf-8", "surrogatepass"))
