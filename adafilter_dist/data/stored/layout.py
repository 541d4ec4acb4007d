"""The layout of a store, FFCV's ``.beton`` (version 2), as numpy types, and where records go in it.

    header | two field descriptors | one row a picture: mode, width, height, offset, domain, label
    encoded pictures, none across a page boundary | one row a picture: number, offset, size

Header and rows are written last. Until then `PLACE` says where each picture lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.errors import UserError

Format = Literal["jpg", "raw"]

VERSION = 2
PAGE = 1 << 26
# The most that a record can take: none lies across a page boundary.
MOST_BYTES = PAGE
MODES: dict[Format, int] = {"jpg": 0, "raw": 1}
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("fields", "<u2"),
        ("page_size", "<u4"),
        ("samples", "<u8"),
        ("table", "<u8"),
    ]
)
_FIELD = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "V1024")])
FIELDS = np.array([(2, b"image", b""), (1, b"label", b"")], dtype=_FIELD)
# FFCV aligns the label to eight bytes after the thirteen of the picture's row. Two of the three
# bytes between them, which it never reads, hold the domain; they are 0 where there is none.
ROW = np.dtype(
    {
        "names": ["mode", "width", "height", "offset", "domain", "label"],
        "formats": ["<u1", "<u2", "<u2", "<u8", "<u2", "<i8"],
        "offsets": [0, 1, 3, 5, 14, 16],
        "itemsize": 24,
    }
)
ALLOCATION = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])
ROWS_AT = HEADER.itemsize + FIELDS.nbytes
# Where a record lies in an unfinished store, and the CRC-32 of its bytes; not ``kept``: nowhere.
PLACE = np.dtype(
    [
        ("kept", "<u1"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("label", "<i8"),
        ("crc", "<u4"),
    ]
)
Places = NDArray[np.void]


def end_of(places: Places, count: int) -> int:
    """Where the pictures of ``places`` end, behind room for the rows of ``count`` records."""
    kept = places[places["kept"] != 0]
    if not len(kept):
        return ROWS_AT + count * ROW.itemsize
    return int(kept[-1]["offset"]) + int(kept[-1]["size"])


def head_of(
    places: Places,
    format: Format,
    domains: Sequence[int] | NDArray[np.uint16] | None,
    table_at: int,
) -> bytes:
    """Header, field descriptors and rows of the records that are kept."""
    kept = np.flatnonzero(places["kept"])
    rows = np.zeros(len(kept), ROW)
    rows["mode"] = MODES[format]
    for name in ("width", "height", "offset", "label"):
        rows[name] = places[name][kept]
    if domains is not None:
        rows["domain"] = np.asarray(domains)[kept]
    header = np.array((VERSION, len(FIELDS), PAGE, len(kept), table_at), HEADER)
    return header.tobytes() + FIELDS.tobytes() + rows.tobytes()


def table_of(places: Places) -> bytes:
    """The table behind the pictures."""
    kept = places[places["kept"] != 0]
    table = np.zeros(len(kept), ALLOCATION)
    table["sample"] = np.arange(len(kept))
    table["offset"], table["size"] = kept["offset"], kept["size"]
    return table.tobytes()


def within_page(offset: int, size: int, path: Path, position: int) -> int:
    """The first place from ``offset`` on where a record does not cross a page boundary."""
    if size > PAGE:
        raise UserError(
            f"record {position} for {path.name} takes {size} bytes, allowed are {PAGE}; lower "
            "data.stored_size or use data.stored_format=jpg"
        )
    left = PAGE - offset % PAGE
    return offset if size <= left else offset + left
