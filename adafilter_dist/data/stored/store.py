"""The file of prepared pictures: written once by ``prepare``, read by both loaders.

The layout is FFCV's ``.beton`` (version 2), written and read here without FFCV, so that one file
serves every loader: what a laptop without FFCV has prepared, a cluster reads with it. FFCV's own
writer waits for ever when a worker fails, and its files differ from run to run; this one passes
errors on and writes the same bytes whatever the number of workers.

    header | two field descriptors | one row a picture: mode, width, height, offset, domain, label
    encoded pictures, none across a page boundary | one row a picture: number, offset, size
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.errors import UserError
from adafilter_dist.system import files
from adafilter_dist.system.sealed_files import sha256_of

SUFFIX = ".beton"
Format = Literal["jpg", "raw"]
Record = Callable[[], tuple[NDArray[np.uint8], int] | None]

_VERSION = 2
_PAGE = 1 << 26
# The most that a record can take: none lies across a page boundary.
MOST_BYTES = _PAGE
_JPEG_END = b"\xff\xd9"
_MODES: dict[Format, int] = {"jpg": 0, "raw": 1}
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("fields", "<u2"),
        ("page_size", "<u4"),
        ("samples", "<u8"),
        ("table", "<u8"),
    ]
)
_FIELD = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "V1024")])
_FIELDS = np.array([(2, b"image", b""), (1, b"label", b"")], dtype=_FIELD)
# FFCV aligns the label to eight bytes after the thirteen of the picture's row. Two of the three
# bytes between them, which it never reads, hold the domain; they are 0 where there is none.
_ROW = np.dtype(
    {
        "names": ["mode", "width", "height", "offset", "domain", "label"],
        "formats": ["<u1", "<u2", "<u2", "<u8", "<u2", "<i8"],
        "offsets": [0, 1, 3, 5, 14, 16],
        "itemsize": 24,
    }
)
_ALLOCATION = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])
_ROWS_AT = _HEADER.itemsize + _FIELDS.nbytes


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
    domains: Sequence[int] | None = None,
    format: Format = "jpg",
    jpeg_quality: int = 95,
    num_workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Write the pictures to ``path`` (its suffix becomes .beton), in the order of ``records``.

    A record is called in a worker thread and returns (uint8 RGB array (H, W, 3), label), or None to
    be left out; what it raises ends the writing and is raised here. ``domains`` holds a number
    below 65,536 for each record, default 0. ``progress`` is called with the number of records done.
    The file appears whole or not at all; its sha256 is written beside it.
    """
    path = path.with_suffix(SUFFIX)
    rows = np.zeros(len(records), _ROW)
    table = np.zeros(len(records), _ALLOCATION)
    kept: list[int] = []

    def encode(record: Record) -> tuple[NDArray[np.uint8], tuple[int, int], int] | None:
        result = record()
        if result is None:
            return None
        picture, label = result
        return _encode(picture, format, jpeg_quality), (picture.shape[0], picture.shape[1]), label

    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file, WorkerPool(num_workers) as pool:
            # Room for every row; if records are left out, a gap stays that nobody reads.
            offset = _ROWS_AT + rows.nbytes
            for position, encoded in enumerate(pool.map(encode, records, ahead=4 * num_workers)):
                if encoded is not None:
                    data, (height, width), label = encoded
                    offset = _within_page(offset, data.size, path, position)
                    domain = 0 if domains is None else domains[position]
                    rows[len(kept)] = (_MODES[format], width, height, offset, domain, label)
                    table[len(kept)] = (len(kept), offset, data.size)
                    file.seek(offset)
                    file.write(data.data)
                    offset += data.size
                    kept.append(position)
                if progress is not None:
                    progress(position + 1)
            rows, table = rows[: len(kept)], table[: len(kept)]
            file.seek(offset)
            file.write(table.tobytes())
            file.seek(0)
            header = np.array((_VERSION, len(_FIELDS), _PAGE, len(kept), offset), _HEADER)
            file.write(header.tobytes() + _FIELDS.tobytes() + rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_of(temporary)
        files.write_text(_digest_path(path), f"{digest}  {path.name}\n")
        temporary.replace(path)
        files.fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(
        path,
        np.array(kept, np.int64),
        rows["label"].astype(np.int64),
        path.stat().st_size,
        digest,
    )


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
        if size < _ROWS_AT:
            raise self._damaged(f"{size} bytes are too few even for its header")
        header = np.frombuffer(self._bytes, _HEADER, count=1)[0]
        if header["version"] != _VERSION or header["fields"] != len(_FIELDS):
            raise self._damaged("its header is not one that `adafilter prepare` writes")
        self._samples = int(header["samples"])
        table_at = int(header["table"])
        expected = table_at + self._samples * _ALLOCATION.itemsize
        if size != expected or _ROWS_AT + self._samples * _ROW.itemsize > table_at:
            raise self._damaged(f"{size} bytes where its header says {expected}")
        rows = np.frombuffer(self._bytes, _ROW, count=self._samples, offset=_ROWS_AT)
        table = np.frombuffer(self._bytes, _ALLOCATION, count=self._samples, offset=table_at)
        self.labels: NDArray[np.int64] = rows["label"].astype(np.int64)
        self.domains: NDArray[np.int64] = rows["domain"].astype(np.int64)
        self.heights: NDArray[np.int64] = rows["height"].astype(np.int64)
        self.widths: NDArray[np.int64] = rows["width"].astype(np.int64)
        self._offsets = table["offset"].astype(np.int64)
        self._sizes = table["size"].astype(np.int64)
        self._raw = rows["mode"] == _MODES["raw"]
        if (
            not np.array_equal(rows["offset"], table["offset"])
            or (self._offsets + self._sizes > table_at).any()
            or (self._sizes != self.heights * self.widths * 3)[self._raw].any()
        ):
            raise self._damaged("its tables contradict each other")

    def __len__(self) -> int:
        return self._samples

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


def _within_page(offset: int, size: int, path: Path, position: int) -> int:
    """The first place from ``offset`` on where a record does not cross a page boundary."""
    if size > _PAGE:
        raise UserError(
            f"record {position} for {path.name} takes {size} bytes, allowed are {_PAGE}; lower "
            "data.stored_size or use data.stored_format=jpg"
        )
    left = _PAGE - offset % _PAGE
    return offset if size <= left else offset + left


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
