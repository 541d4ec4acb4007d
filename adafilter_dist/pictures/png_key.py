"""The transparent colour of a PNG whose samples are not of 8 bits.

The file names one colour in samples of its own depth. Pillow compares it with pixels that it has
scaled to 8 bits, so that nothing, or something else, is transparent.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFile

# Pillow's names of how gray of 2 and 4 bits is stored, and what it multiplies them by.
_GROWTH = {"L;2": 85, "L;4": 17}


def needs_mending(picture: Image.Image) -> bool:
    """Whether Pillow mistakes the transparent colour of a picture that is not yet loaded."""
    return "transparency" in picture.info and (_stored_as(picture) in (*_GROWTH, "RGB;16B"))


def mend_key(picture: ImageFile.ImageFile, content: bytes) -> None:
    """Load the picture and make just the pixels transparent that its file names."""
    stored_as, key = _stored_as(picture), picture.info["transparency"]
    if stored_as in _GROWTH:
        picture.info["transparency"] = key * _GROWTH[stored_as]
        return
    # Read a second time, as if the two bytes of a sample were swapped: the lower 8 bits.
    lower = Image.open(io.BytesIO(content), formats=["PNG"])
    decoder, extents, offset, _ = lower.tile[0]
    lower.tile = [ImageFile._Tile(decoder, extents, offset, "RGB;16L")]
    samples = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(lower)
    alpha = np.where((samples == key).all(axis=2), 0, 255).astype(np.uint8)
    del picture.info["transparency"]
    picture.putalpha(Image.fromarray(alpha))


def _stored_as(picture: Image.Image) -> str:
    tiles = getattr(picture, "tile", None) if picture.format == "PNG" else None
    return str(tiles[0][3]) if tiles else ""
