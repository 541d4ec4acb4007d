"""A part of a picture resized as Pillow does, bilinear or bicubic with antialiasing, to the bit.

Pillow resizes whole pictures, of which evaluation shows the centre. Here only what the centre needs
is computed: along rows, then columns, in integers, with weights of 22 bits, to bytes each time.
"""

from __future__ import annotations

import math
from functools import partial

import numba
import numpy as np

from adafilter_dist.data.loading.compiling import compiled

_BITS = 22
_HALF = np.int32(1 << (_BITS - 1))

_BYTES = numba.types.Array(numba.types.uint8, 1, "C", readonly=True)
_TARGET = numba.types.Array(numba.types.uint8, 3, "C")
_POSITIONS = numba.types.Array(numba.types.int64, 2, "C")
_WEIGHTS = numba.types.Array(numba.types.int32, 2, "C")
# One for sources that may be written to and those that may not: it takes a while to compile.
_SIGNATURE = numba.types.void(
    _BYTES, *[numba.types.int64] * 2, *[_POSITIONS, _WEIGHTS] * 2, _TARGET
)


@compiled
def _height(distance, cubic):  # type: ignore[no-untyped-def]
    """Of the filter, at a distance from its middle."""
    x = abs(distance)
    if not cubic:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@compiled
def antialias_taps(length, size, first, count, cubic):  # type: ignore[no-untyped-def]
    """Which of ``length`` source pixels make ``count`` targets of ``size``, from ``first`` on.

    Positions (count, 2): first source pixel and how many; their weights int32 (count, most). There
    are no weights where each target is its source.
    """
    if length == size:
        positions = np.ones((count, 2), np.int64)
        positions[:, 0] = first + np.arange(count)
        return positions, np.empty((count, 0), np.int32)
    scale = length / size
    wider = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * wider
    inverse = 1.0 / wider
    most = math.ceil(support) * 2 + 1
    positions = np.empty((count, 2), np.int64)
    weights = np.zeros((count, most), np.int32)
    heights = np.empty(most, np.float64)
    for k in range(count):
        centre = (first + k + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), length)
        total = 0.0
        for x in range(high - low):
            heights[x] = _height((x + low - centre + 0.5) * inverse, cubic)
            total += heights[x]
        positions[k, 0], positions[k, 1] = low, high - low
        for x in range(high - low):
            if total != 0.0:
                heights[x] /= total
            scaled = heights[x] * (1 << _BITS)
            weights[k, x] = np.int32(scaled - 0.5 if heights[x] < 0 else scaled + 0.5)
    return positions, weights


@compiled
def _byte(total):  # type: ignore[no-untyped-def]
    return np.uint8(min(max(total >> _BITS, 0), 255))


@partial(compiled, signature=_SIGNATURE)
def resize_part(source, start, stride, rows, row_weights, columns, column_weights, target):  # type: ignore[no-untyped-def]
    """Fill ``target`` (rows, columns, 3) by the taps of its rows and columns.

    These have weights both ways, or neither way. ``source`` uint8 (n,) holds from ``start`` on the
    first source row and column that they name; its rows are ``stride`` bytes apart.
    """
    height, width = target.shape[0], target.shape[1]
    top, left = rows[0, 0], columns[0, 0]
    if row_weights.shape[1] == 0 and column_weights.shape[1] == 0:
        for y in range(height):
            at = start + y * stride
            target[y].reshape(3 * width)[:] = source[at : at + 3 * width]
        return
    count = rows[height - 1, 0] + rows[height - 1, 1] - top
    lines = np.empty((count, 3 * width), np.uint8)
    for y in range(count):
        for x in range(width):
            at = start + y * stride + 3 * (columns[x, 0] - left)
            red = green = blue = _HALF
            for k in range(columns[x, 1]):
                weight = column_weights[x, k]
                red += np.int32(source[at]) * weight
                green += np.int32(source[at + 1]) * weight
                blue += np.int32(source[at + 2]) * weight
                at += 3
            lines[y, 3 * x] = _byte(red)
            lines[y, 3 * x + 1] = _byte(green)
            lines[y, 3 * x + 2] = _byte(blue)
    total = np.empty(3 * width, np.int32)
    for y in range(height):
        total[:] = _HALF
        for k in range(rows[y, 1]):
            weight = row_weights[y, k]
            line = lines[rows[y, 0] - top + k]
            for x in range(3 * width):
                total[x] += weight * np.int32(line[x])
        shown = target[y].reshape(3 * width)
        for x in range(3 * width):
            shown[x] = _byte(total[x])
