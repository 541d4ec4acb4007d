"""Crop and resize as OpenCV's INTER_AREA does, which FFCV uses; without OpenCV.

Shrinking both ways averages the source pixels by the area that falls into each target pixel;
otherwise each target pixel is a blend of two source pixels a direction. Pixels agree with OpenCV's
to its rounding.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Taps = tuple[tuple[NDArray[np.int64], NDArray[np.float32]], ...]


def resize_box(
    picture: NDArray[np.uint8], box: NDArray[np.int64], size: int, *, mirrored: bool
) -> NDArray[np.uint8]:
    """The box (top, left, height, width) of a picture (H, W, 3), scaled to (size, size, 3)."""
    top, left, height, width = (int(side) for side in box)
    shrinks = min(height, width) >= size
    pixels = picture[top : top + height, left : left + width].astype(np.float32)
    rows = _resample(pixels, _taps(height, size, shrinks))
    # Turned, so that both passes move whole lines.
    turned = _resample(np.ascontiguousarray(rows.transpose(1, 0, 2)), _taps(width, size, shrinks))
    result = np.rint(turned, out=turned).astype(np.uint8)
    return (result[::-1] if mirrored else result).transpose(1, 0, 2)


def _resample(source: NDArray[np.float32], taps: Taps) -> NDArray[np.float32]:
    """Weighted sums of the source's lines (axis 0)."""
    (index, weight), *others = taps
    total = source.take(index, 0)
    total *= weight
    for index, weight in others:
        part = source.take(index, 0)
        part *= weight
        total += part
    return total


@functools.lru_cache(maxsize=4096)
def _taps(length: int, size: int, shrinks: bool) -> Taps:
    """For each tap: the source line of each of ``size`` target lines, its weight (size, 1, 1)."""
    weights = _area_weights(length, size) if shrinks else _linear_weights(length, size)
    first = (weights > 0).argmax(axis=1)
    count = int((weights > 0).sum(axis=1).max())
    rows = np.arange(size)
    taps = []
    for tap in range(count):
        index = np.minimum(first + tap, length - 1)
        weight = np.where(first + tap < length, weights[rows, index], 0)
        taps.append((index, weight.astype(np.float32)[:, None, None]))
    return tuple(taps)


def _area_weights(length: int, size: int) -> NDArray[np.float64]:
    """(size, length): share of each source pixel in each target pixel, rows sum to one."""
    edges = np.arange(size + 1) * (length / size)
    pixel = np.arange(length)
    start = np.maximum(edges[:-1, None], pixel)
    stop = np.minimum(edges[1:, None], pixel + 1)
    overlap = np.maximum(stop - start, 0)
    # OpenCV drops slivers below a thousandth of a pixel.
    overlap[overlap < 1e-3] = 0
    return overlap / overlap.sum(axis=1, keepdims=True)


def _linear_weights(length: int, size: int) -> NDArray[np.float64]:
    """(size, length): OpenCV's blend for INTER_AREA when a side grows."""
    # Written as there, division by division: where a boundary falls on a whole pixel, the last bit
    # decides which neighbour is taken.
    growth = size / length
    target = np.arange(size)
    left = np.floor(target * (1 / growth)).astype(np.int64)
    right = ((target + 1) - (left + 1) * growth).astype(np.float32)
    right = np.where(right <= 0, 0, right - np.floor(right))
    # At the border the missing neighbour is the border pixel itself.
    right[left + 1 >= length] = 0
    weights = np.zeros((size, length))
    weights[target, left] = 1 - right
    weights[target, np.minimum(left + 1, length - 1)] += right
    return weights
