"""Picture files written byte by byte, so that their right values do not come from Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of PNG


def png(
    width: int,
    depth: int,
    colour: int,
    rows: Sequence[bytes],
    *,
    transparent: bytes = b"",
    palette: bytes = b"",
) -> bytes:
    """A PNG of the rows' packed samples."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_chunk(b"PLTE", palette)] if palette else []
    chunks += [_chunk(b"tRNS", transparent)] if transparent else []
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, _chunk(b"IDAT", packed), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    width: int,
    height: int,
    bits: Sequence[int],
    photometric: int,
    strip: bytes,
    *,
    order: str = "<",
    more: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """An uncompressed TIFF of one strip; ``bits`` of each sample, ``more`` tags of shorts."""
    tags: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: bits,
        259: [1],
        262: [photometric],
        273: [0],
        277: [len(bits)],
        278: [height],
        279: [len(strip)],
        **(more or {}),
    }
    after = 8 + 2 + 12 * len(tags) + 4
    bits_at, strip_at = after, after + 2 * len(bits)
    tags[273] = [strip_at]
    entries = b""
    for tag, values in sorted(tags.items()):
        if tag == 258 and len(values) > 2:
            entries += struct.pack(f"{order}HHII", tag, 3, len(values), bits_at)
        else:
            shorts = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
            entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + shorts
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return head + directory + struct.pack(f"{order}{len(bits)}H", *bits) + strip
