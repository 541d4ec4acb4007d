"""The file of prepared pictures: written once by ``prepare``, read by both loaders.

The layout is FFCV's ``.beton`` (version 2), written and read here without FFCV, so that one file
serves every loader: what a laptop without FFCV has prepared, a cluster reads with it. FFCV's own
writer waits for ever when a worker fails, and its files differ from run to run; this one passes
errors on and writes the same bytes whatever the number of workers.

    header | two field descriptors | one row a picture: mode, width, height, offset, domain, label
    encoded pictures, none across a page boundary | one row a picture: number, offset, size

Header and rows are written last. Until then the caller may keep the place of each picture, so that
a writer goes on with the pictures that a killed one wrote.
"""

from __future__ import annotations

import io
import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.data.stored.layout import (
    ALLOCATION,
    FIELDS,
    HEADER,
    MODES,
    PAGE,
    PLACE,
    ROW,
    ROWS_AT,
    VERSION,
    Format,
    Places,
    end_of,
    head_of,
    table_of,
    within_page,
)
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.errors import UserError
from adafilter_dist.system import files
from adafilter_dist.system.progress import Counting, no_counting
from adafilter_dist.system.sealed_files import sha256_of

SUFFIX = ".beton"
Record = Callable[[], tuple[NDArray[np.uint8], int] | None]

_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class Written:
    """What ``write_store`` wrote; ``kept`` are the positions in ``records`` that were not None."""

    path: Path
    kept: NDArray[np.int64]
    labels: NDArray[np.int64]
    size: int
    sha256: str


def write_store(
    path: Path,
    records: Sequence[Record],
    *,
    domains: Sequence[int] | NDArray[np.uint16] | None = None,
    format: Format = "jpg",
    jpeg_quality: int = 95,
    num_workers: int = 1,
    progress: Callable[[int], None] | None = None,
    done: Places | None = None,
    written: Callable[[Places], None] | None = None,
    hashing: Counting = no_counting,
) -> Written:
    """Write the pictures to ``path`` (its suffix becomes .beton), in the order of ``records``.

    A record is called in a worker thread and returns (uint8 RGB array (H, W, 3), label), or None to
    be left out; what it raises ends the writing and is raised here. ``domains`` holds a number
    below 65,536 for each record, default 0. ``progress`` is called with the number of records done.
    The file appears whole or not at all; its sha256 is written beside it.

    ``written`` is called with the place (dtype PLACE, shape (1,)) of each record once it is in the
    file. ``done`` are the places of the first records, as an earlier call that was killed told
    them; `intact` says how many of them hold. Where ``written`` is given, the unfinished file stays
    when the writing ends by an error. ``hashing`` shows how far the finished file is hashed (MiB).
    """
    path = path.with_suffix(SUFFIX)
    places = np.zeros(len(records), PLACE)
    first = 0 if done is None else len(done)
    if done is not None:
        places[:first] = done

    def encode(record: Record) -> tuple[NDArray[np.uint8], tuple[int, int], int] | None:
        result = record()
        if result is None:
            return None
        picture, label = result
        return _encode(picture, format, jpeg_quality), (picture.shape[0], picture.shape[1]), label

    temporary = unfinished(path)
    try:
        mode = "r+b" if first else "wb"
        with temporary.open(mode, buffering=0) as file, WorkerPool(num_workers) as pool:
            # The pictures, behind room for every row.
            offset = end_of(places[:first], len(records))
            file.truncate(offset)
            left = (records[position] for position in range(first, len(records)))
            encoded = pool.map(encode, left, ahead=4 * num_workers)
            for position, record in enumerate(encoded, first):
                if record is not None:
                    data, (height, width), label = record
                    offset = within_page(offset, data.size, path, position)
                    crc = zlib.crc32(data.data)
                    places[position] = (1, height, width, offset, data.size, label, crc)
                    _write_at(file, offset, data.data)
                    offset += data.size
                if written is not None:
                    written(places[position : position + 1])
                if progress is not None:
                    progress(position + 1)
            # The table behind them; header and rows before them. If records are left out, a gap
            # stays that nobody reads.
            _write_at(file, offset, table_of(places))
            _write_at(file, 0, head_of(places, format, domains, offset))
            os.fsync(file.fileno())
        with hashing(f"hashing {path.stem}", temporary.stat().st_size >> 20) as hashed:
            digest = sha256_of(temporary, lambda size: hashed(size >> 20))
        files.write_text(_digest_path(path), f"{digest}  {path.name}\n")
        temporary.replace(path)
        files.fsync_folder(path.parent)
    except BaseException:
        if written is None:
            temporary.unlink(missing_ok=True)
        raise
    kept = np.flatnonzero(places["kept"])
    labels = places["label"][kept].astype(np.int64)
    return Written(path, kept, labels, path.stat().st_size, digest)


def intact(path: Path, places: Places, count: int, progress: Callable[[int], None]) -> int:
    """How many of the first places of an unfinished store of ``count`` records are as told.

    Reads the bytes of each record up to the first that differs: when a machine stops, its file
    systems may lose some. ``progress`` is called with the number of records read.
    """
    temporary = unfinished(path)
    with suppress(FileNotFoundError):
        # It was finished, but not the folder: it is opened up again.
        path.with_suffix(SUFFIX).rename(temporary)
    offset = ROWS_AT + count * ROW.itemsize
    try:
        with temporary.open("rb") as file:
            for position, place in enumerate(places):
                progress(position)
                size = int(place["size"])
                if not place["kept"]:
                    continue
                if not 0 < size <= PAGE:
                    return position
                offset = within_page(offset, size, path, position)
                file.seek(offset)
                if int(place["offset"]) != offset or zlib.crc32(file.read(size)) != place["crc"]:
                    return position
                offset += size
    except FileNotFoundError:
        return 0
    return len(places)


def unfinished(path: Path) -> Path:
    """Where a store is written before it is whole."""
    path = path.with_suffix(SUFFIX)
    return path.with_name(path.name + ".tmp")


class Store:
    """A store opened for reading; threads may share it.

    Raises UserError where it is missing, cut off or no store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path} is missing; run `adafilter prepare` for this recipe") from None
        except ValueError:
            raise self._damaged("it is empty") from None
        size = len(self._bytes)
        if size < ROWS_AT:
            raise self._damaged(f"{size} bytes are too few even for its header")
        header = np.frombuffer(self._bytes, HEADER, count=1)[0]
        if header["version"] != VERSION or header["fields"] != len(FIELDS):
            raise self._damaged("its header is not one that `adafilter prepare` writes")
        self._samples = int(header["samples"])
        table_at = int(header["table"])
        expected = table_at + self._samples * ALLOCATION.itemsize
        if size != expected or ROWS_AT + self._samples * ROW.itemsize > table_at:
            raise self._damaged(f"{size} bytes where its header says {expected}")
        rows = np.frombuffer(self._bytes, ROW, count=self._samples, offset=ROWS_AT)
        table = np.frombuffer(self._bytes, ALLOCATION, count=self._samples, offset=table_at)
        self.labels: NDArray[np.int64] = rows["label"].astype(np.int64)
        self.domains: NDArray[np.int64] = rows["domain"].astype(np.int64)
        self.heights: NDArray[np.int64] = rows["height"].astype(np.int64)
        self.widths: NDArray[np.int64] = rows["width"].astype(np.int64)
        self._offsets = table["offset"].astype(np.int64)
        self._sizes = table["size"].astype(np.int64)
        self._raw = rows["mode"] == MODES["raw"]
        if (
            not np.array_equal(rows["offset"], table["offset"])
            or (self._offsets < ROWS_AT).any()
            or (self._sizes < 0).any()
            or (self._sizes > table_at - self._offsets).any()
            or (self._sizes != self.heights * self.widths * 3)[self._raw].any()
        ):
            raise self._damaged("its tables contradict each other")
        columns = (self._offsets, self._sizes, self.heights, self.widths, self._raw)
        self._index = np.column_stack(columns).astype(np.int64)

    def __len__(self) -> int:
        return self._samples

    @property
    def content(self) -> NDArray[np.uint8]:
        """The whole file, without a copy."""
        return np.frombuffer(self._bytes, np.uint8)

    @property
    def index(self) -> NDArray[np.int64]:
        """Of each record: offset in `content`, bytes, height, width, 1 where it is raw pixels."""
        return self._index

    def read_at_random(self) -> None:
        """From now on the kernel reads nothing around a record, which the reader announces."""
        self._bytes.madvise(mmap.MADV_RANDOM)

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The record's bytes as stored, shape (size,), without a copy."""
        return np.frombuffer(
            self._bytes, np.uint8, count=int(self._sizes[index]), offset=int(self._offsets[index])
        )

    def read(self, index: int) -> NDArray[np.uint8]:
        """The picture, uint8 RGB (H, W, 3), not to be written to; UserError if it is damaged."""
        data = self.encoded(index)
        shape = (int(self.heights[index]), int(self.widths[index]), 3)
        if self._raw[index]:
            return data.reshape(shape)
        if data[-2:].tobytes() != _JPEG_END:  # Pillow would paint what is missing gray
            raise self._damaged(f"record {index} cannot be decoded (its end is missing)")
        try:
            with Image.open(io.BytesIO(data.data), formats=["JPEG"]) as opened:
                picture = np.asarray(opened)
        except OSError as error:
            raise self._damaged(f"record {index} cannot be decoded ({error})") from error
        if picture.shape != shape:
            raise self._damaged(f"record {index} is not {shape[0]} x {shape[1]} px")
        return picture

    def _damaged(self, what: str) -> Damaged:
        return Damaged(self.path, what)


class Damaged(UserError):
    """A store that cannot be trusted; ``what`` is the message without what to do."""

    def __init__(self, path: Path, what: str) -> None:
        self.what = f"{path} is damaged: {what}"
        super().__init__(
            f"{self.what}; run `adafilter prepare` for this recipe again, with data.verify=always"
        )


def _encode(picture: NDArray[np.uint8], format: Format, quality: int) -> NDArray[np.uint8]:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    if format == "raw":
        return np.ascontiguousarray(picture).reshape(-1)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "JPEG", quality=quality)
    return np.frombuffer(encoded.getbuffer(), np.uint8)


def _write_at(file: IO[bytes], offset: int, content: bytes | memoryview) -> None:
    left = memoryview(content).cast("B")
    file.seek(offset)
    while left:
        left = left[file.write(left) :]


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
