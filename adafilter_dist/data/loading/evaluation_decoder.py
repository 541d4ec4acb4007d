"""Pictures for evaluation by compiled code: what the centre needs is decoded and resized.

The pixels are those of Pillow to the bit. Which pass comes first, and how it rounds, depends on a
picture's sides and may change with Pillow (13 resizes tall pictures along columns first). So the
first picture of each size is read by Pillow too; where one pixel differs, Pillow reads them all.

Importing this module imports numba. LibraryMissing where Pillow's libjpeg cannot be used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL.Image import fromarray

from adafilter_dist.data.loading.antialias import antialias_taps, resize_part
from adafilter_dist.data.loading.compiling import compiled
from adafilter_dist.data.loading.libjpeg import (
    LIBRARY,
    close_decoder,
    decode_box,
    open_decoder,
)
from adafilter_dist.data.stored.store import Damaged, Store
from adafilter_dist.models.backbone.preprocess import Preprocess, evaluation_pixels


class EvaluationDecoder:
    """Reads records of a store as evaluation shows them; threads may share it."""

    def __init__(self, store: Store, preprocess: Preprocess) -> None:
        self._store = store
        self._preprocess = preprocess
        self._equals_pillow: dict[tuple[int, int], bool] = {}  # by height and width

    def read(self, record: int) -> NDArray[np.uint8]:
        """Resized and cropped, uint8 (crop, crop, 3); UserError if it is damaged."""
        sides = int(self._store.heights[record]), int(self._store.widths[record])
        if self._equals_pillow.get(sides, False):
            return self._compiled(record)
        by_pillow = evaluation_pixels(fromarray(self._store.read(record)), self._preprocess)
        if sides not in self._equals_pillow:
            same = self._covers(sides) and np.array_equal(self._compiled(record), by_pillow)
            self._equals_pillow[sides] = same
        return by_pillow

    def _shown(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the resized picture."""
        # As torchvision has it: the shorter side is given, the longer cut to whole pixels.
        height, width = (self._preprocess.resize * side / min(sides) for side in sides)
        return int(height), int(width)

    def _covers(self, sides: tuple[int, int]) -> bool:
        """Whether the resized picture is as large as the crop, which has no margin then."""
        return min(self._shown(sides)) >= self._preprocess.crop

    def _compiled(self, record: int) -> NDArray[np.uint8]:
        """The same by compiled code."""
        place, crop = self._store.index[record], self._preprocess.crop
        shown = self._shown((int(place[2]), int(place[3])))
        top, left = (round((length - crop) / 2) for length in shown)
        pixels = np.empty((crop, crop, 3), np.uint8)
        cubic = self._preprocess.interpolation == "bicubic"
        box = np.array([*shown, top, left], np.int64)
        if not _fill(LIBRARY, self._store.content, place, box, cubic, pixels):
            self._store.read(record)  # knows what is wrong with it, mostly
            raise Damaged(self._store.path, f"record {record} cannot be decoded")
        return pixels


@compiled
def _fill(library, content, place, box, cubic, pixels):  # type: ignore[no-untyped-def]
    """Fill pixels (crop, crop, 3) from the record at ``place``; False where it is damaged.

    ``box``: height and width of the resized picture, top and left of the crop in it.
    """
    offset, size, height, width, raw = place
    crop = pixels.shape[0]
    rows, row_weights = antialias_taps(height, box[0], box[2], crop, cubic)
    columns, column_weights = antialias_taps(width, box[1], box[3], crop, cubic)
    top, left = rows[0, 0], columns[0, 0]
    count = rows[crop - 1, 0] + rows[crop - 1, 1] - top
    across = columns[crop - 1, 0] + columns[crop - 1, 1] - left
    if raw:
        start = offset + 3 * (top * width + left)
        resize_part(content, start, 3 * width, rows, row_weights, columns, column_weights, pixels)
        return True
    encoded = content[offset : offset + size]
    decoded = np.empty(3 * count * width, np.uint8)
    needed = np.array([top, left, count, across])
    decoder = open_decoder(library)
    column, length = decode_box(library, decoder, encoded, height, width, needed, decoded)
    close_decoder(library, decoder)
    if column < 0 or encoded[size - 2] != 0xFF or encoded[size - 1] != 0xD9:
        return False
    resize_part(decoded, 3 * column, 3 * length, rows, row_weights, columns, column_weights, pixels)
    return True
