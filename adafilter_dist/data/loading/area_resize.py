"""Crop and resize as OpenCV's INTER_AREA does, to the bit, compiled by numba; without OpenCV.

The same order of additions, in the same widths of numbers, so that pixels are those of FFCV, which
calls OpenCV. Shrinking both ways averages source pixels by the area that falls into each target
pixel, in float32; where both sides shrink by whole numbers, in integers. Otherwise a target pixel
blends two source pixels a direction, in integers of 11 bits. No fused additions: one result on
every CPU.
"""

from __future__ import annotations

import math
from functools import partial

import numba
import numpy as np

from adafilter_dist.data.loading.compiling import compiled

_ONE = 2048
_SLIVER = 1e-3
_EPSILON = 2.220446049250313e-16

# Of three colours in one number.
_LANE, _TWO_LANES, _TWO_LANES_AND_FOUR = np.uint64(21), np.uint64(42), np.uint64(46)
_MASK, _FOUR = np.uint64((1 << 21) - 1), np.uint64(4)

_BYTES = numba.types.Array(numba.types.uint8, 1, "C", readonly=True)
_TARGET = numba.types.Array(numba.types.uint8, 3, "C")
# One for sources that may be written to and those that may not: it takes a while to compile.
_SIGNATURE = numba.types.void(_BYTES, *[numba.types.int64] * 4, _TARGET, numba.types.boolean)


@compiled
def _copy(source, start, stride, target, mirrored):  # type: ignore[no-untyped-def]
    rows, columns = target.shape[0], target.shape[1]
    for y in range(rows):
        for x in range(columns):
            to = columns - 1 - x if mirrored else x
            at = start + y * stride + 3 * x
            for c in range(3):
                target[y, to, c] = source[at + c]


@compiled
def _means(source, start, stride, whole_y, whole_x, target, mirrored):  # type: ignore[no-untyped-def]
    """Each target pixel is the mean of whole_y x whole_x source pixels."""
    rows, columns = target.shape[0], target.shape[1]
    share = np.float32(1) / np.float32(whole_y * whole_x)
    for y in range(rows):
        for x in range(columns):
            to = columns - 1 - x if mirrored else x
            for c in range(3):
                total = np.int32(0)
                for dy in range(whole_y):
                    at = start + (y * whole_y + dy) * stride + 3 * x * whole_x + c
                    for dx in range(whole_x):
                        total += source[at + 3 * dx]
                if whole_x == 2 and whole_y == 2:
                    target[y, to, c] = (total + 2) >> 2
                else:
                    target[y, to, c] = np.uint8(np.rint(np.float32(total) * share))


@compiled
def area_shares(length, count, scale):  # type: ignore[no-untyped-def]
    """Which source pixels fall into ``count`` target pixels, and how much of each.

    Returns bounds (count + 1,) into: source pixels, shares in float32.
    """
    bounds = np.empty(count + 1, np.int64)
    pixels = np.empty(2 * length + 2 * count, np.int64)
    shares = np.empty(2 * length + 2 * count, np.float32)
    n = 0
    for k in range(count):
        bounds[k] = n
        low = k * scale
        high = low + scale
        cell = min(scale, length - low)
        first = math.ceil(low)
        last = min(math.floor(high), length - 1)
        first = min(first, last)
        if first - low > _SLIVER:
            pixels[n] = first - 1
            shares[n] = np.float32((first - low) / cell)
            n += 1
        for pixel in range(first, last):
            pixels[n] = pixel
            shares[n] = np.float32(1.0 / cell)
            n += 1
        if high - last > _SLIVER:
            pixels[n] = last
            shares[n] = np.float32(min(min(high - last, 1.0), cell) / cell)
            n += 1
    bounds[count] = n
    return bounds, pixels, shares


@compiled
def _areas(source, start, stride, height, width, scale_y, scale_x, target, mirrored):  # type: ignore[no-untyped-def]
    """Each target pixel is the mean of the source's area under it: along rows, then columns."""
    rows, columns = target.shape[0], target.shape[1]
    row_bounds, row_pixels, row_shares = area_shares(height, rows, scale_y)
    bounds, pixels, shares = area_shares(width, columns, scale_x)
    line = np.empty((columns, 3), np.float32)
    total = np.empty((columns, 3), np.float32)
    known = np.int64(-1)
    for y in range(rows):
        total[:] = 0
        for tap in range(row_bounds[y], row_bounds[y + 1]):
            # Two target rows may share a source row.
            if row_pixels[tap] != known:
                known = row_pixels[tap]
                row = start + known * stride
                for x in range(columns):
                    red = green = blue = np.float32(0)
                    for k in range(bounds[x], bounds[x + 1]):
                        at = row + 3 * pixels[k]
                        share = shares[k]
                        red += np.float32(source[at]) * share
                        green += np.float32(source[at + 1]) * share
                        blue += np.float32(source[at + 2]) * share
                    to = columns - 1 - x if mirrored else x
                    line[to, 0], line[to, 1], line[to, 2] = red, green, blue
            share = row_shares[tap]
            for x in range(columns):
                for c in range(3):
                    total[x, c] += share * line[x, c]
        for x in range(columns):
            for c in range(3):
                target[y, x, c] = np.uint8(np.rint(total[x, c]))


@compiled
def blend_weights(length, count, scale):  # type: ignore[no-untyped-def]
    """For each of ``count`` target pixels: the first of two source pixels, and both weights."""
    growth = float(count) / float(length)
    firsts = np.empty(count, np.int64)
    weights = np.empty((count, 2), np.int32)
    for k in range(count):
        first = math.floor(k * scale)
        part = np.float32((k + 1) - (first + 1) * growth)
        part = np.float32(0) if part <= 0 else part - np.float32(math.floor(part))
        if first >= length - 1:
            first, part = length - 1, np.float32(0)
        firsts[k] = first
        weights[k, 0] = np.int32(np.rint((np.float32(1) - part) * np.float32(_ONE)))
        weights[k, 1] = np.int32(np.rint(part * np.float32(_ONE)))
    return firsts, weights


@compiled
def _blends(source, start, stride, height, width, scale_y, scale_x, target, mirrored):  # type: ignore[no-untyped-def]
    """Each target pixel blends two by two source pixels: along rows, then columns."""
    rows, columns = target.shape[0], target.shape[1]
    firsts, weights = blend_weights(width, columns, scale_x)
    if mirrored:
        firsts, weights = firsts[::-1].copy(), weights[::-1].copy()
    tops, row_weights = blend_weights(height, rows, scale_y)
    packed = np.zeros(width + 1, np.uint64)
    lines = np.empty((2, 3 * columns), np.int16)
    known = np.full(2, -1, np.int64)
    for y in range(rows):
        for side in range(2):
            which = min(tops[y] + side, height - 1)
            if known[which & 1] != which:
                known[which & 1] = which
                _pack(source[start + which * stride :], packed)
                _blend_row(packed, firsts, weights, lines[which & 1])
        upper, lower = lines[tops[y] & 1], lines[min(tops[y] + 1, height - 1) & 1]
        _blend_lines(upper, lower, row_weights[y], target[y].reshape(3 * columns))


@compiled
def _pack(row, packed):  # type: ignore[no-untyped-def]
    """Three colours of each pixel in one number, 21 bits each, so as to weigh them at once."""
    for x in range(len(packed) - 1):
        colours = np.uint64(row[3 * x])
        colours |= np.uint64(row[3 * x + 1]) << _LANE
        colours |= np.uint64(row[3 * x + 2]) << _TWO_LANES
        packed[x] = colours


@compiled
def _blend_row(packed, firsts, weights, line):  # type: ignore[no-untyped-def]
    """Blend neighbours in a row; the results' lowest four bits are cut off."""
    for x in range(len(firsts)):
        first = firsts[x]
        blended = packed[first] * np.uint64(weights[x, 0])
        blended += packed[first + 1] * np.uint64(weights[x, 1])
        line[3 * x] = np.int16((blended & _MASK) >> _FOUR)
        line[3 * x + 1] = np.int16(((blended >> _LANE) & _MASK) >> _FOUR)
        line[3 * x + 2] = np.int16(blended >> _TWO_LANES_AND_FOUR)


@compiled
def _blend_lines(upper, lower, weights, target):  # type: ignore[no-untyped-def]
    """Blend two lines, in the 16 bits that OpenCV keeps."""
    over, under = weights[0], weights[1]
    for x in range(len(target)):
        a = np.int16((over * np.int32(upper[x])) >> 16)
        b = np.int16((under * np.int32(lower[x])) >> 16)
        target[x] = np.uint8((a + b + 2) >> 2)


@partial(compiled, signature=_SIGNATURE)
def resize_box(source, start, stride, height, width, target, mirrored):  # type: ignore[no-untyped-def]
    """Scale height x width pixels of ``source`` to ``target`` (R, R, 3).

    ``source`` uint8 (n,) holds the box from ``start`` on, its rows ``stride`` bytes apart.
    """
    rows, columns = target.shape[0], target.shape[1]
    scale_y = 1.0 / (float(rows) / float(height))
    scale_x = 1.0 / (float(columns) / float(width))
    if rows == height and columns == width:
        _copy(source, start, stride, target, mirrored)
    elif scale_x >= 1 and scale_y >= 1:
        whole_y, whole_x = int(np.rint(scale_y)), int(np.rint(scale_x))
        if abs(scale_x - whole_x) < _EPSILON and abs(scale_y - whole_y) < _EPSILON:
            _means(source, start, stride, whole_y, whole_x, target, mirrored)
        else:
            _areas(source, start, stride, height, width, scale_y, scale_x, target, mirrored)
    else:
        _blends(source, start, stride, height, width, scale_y, scale_x, target, mirrored)
