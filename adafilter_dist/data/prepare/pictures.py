"""What a store keeps of a picture: upright 8-bit RGB pixels of the stored size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.pictures.reading import read_picture
from adafilter_dist.pictures.scaling import to_stored_size


@dataclass(frozen=True)
class StoredPicture:
    """Pixels (H, W, 3), contiguous uint8, and what was learned of their source on the way.

    ``brightest`` and ``decoding`` are those of `adafilter_dist.pictures.reading.Reading`.
    """

    pixels: NDArray[np.uint8]
    brightest: int | None
    decoding: int


def stored_picture(content: bytes | NDArray[Any], stored_size: int) -> StoredPicture:
    """A picture file's bytes, or pixels, with the shortest side ``stored_size`` px long.

    Raises BadPicture.
    """
    reading = read_picture(content, stored_size)
    pixels = np.array(to_stored_size(reading.picture, stored_size))
    return StoredPicture(pixels, reading.brightest, reading.decoding)


def stored_pixels(content: bytes | NDArray[Any], stored_size: int) -> NDArray[np.uint8]:
    """The pixels of `stored_picture`. Raises BadPicture."""
    return stored_picture(content, stored_size).pixels
