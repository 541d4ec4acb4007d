"""Crop and resize as OpenCV's INTER_AREA does, to the bit, by torch on any device; many at once.

What `area_resize` computes for one box is computed here for all boxes of a batch: the same
additions in the same order. Each is a torch operation of its own, so that none is fused with the
multiplication before it, and none adds in an order that may change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.area_resize import area_shares, blend_weights

Taps = tuple[NDArray[np.int32], NDArray[np.float32]]
"""For each target pixel the source pixels, and the weight of each: two of (taps, size)."""


@dataclass(frozen=True)
class _Boxes:
    """Boxes of pictures that lie one after the other in ``pixels`` (bytes,), plane by plane.

    ``lines`` (n, 3, rows) is where each row of a box begins, by colour; shorter boxes repeat their
    last one. ``heights`` and ``widths`` (n,) stay on the host, ``mirrored`` is (n, 1, 1).
    """

    pixels: Tensor
    lines: Tensor
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    mirrored: Tensor

    @staticmethod
    def of(pictures: Sequence[Tensor], boxes: NDArray[np.int64]) -> _Boxes:
        device = pictures[0].device
        sides = np.array([picture.shape[1:] for picture in pictures])
        planes = sides.prod(axis=1)
        starts = np.concatenate([[0], 3 * planes.cumsum()[:-1]])
        top, left, heights, widths, mirrored = boxes.T
        rows = np.minimum(np.arange(heights.max()), heights[:, None] - 1)
        in_plane = (top[:, None] + rows) * sides[:, 1:] + left[:, None]
        colours = starts[:, None] + planes[:, None] * np.arange(3)
        lines = torch.from_numpy(colours).to(device)[:, :, None]
        lines = lines + torch.from_numpy(in_plane).to(device)[:, None, :]
        pixels = torch.cat([picture.reshape(-1) for picture in pictures])
        flips = torch.from_numpy(mirrored != 0).to(device)[:, None, None]
        return _Boxes(pixels, lines, heights, widths, flips)

    def taps(
        self, taps_of: Callable[[int, int], Taps], size: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Along rows, mirrored where asked for, and along columns; each (n, taps, size)."""
        device = self.pixels.device
        along_rows, along_columns = (
            _together([taps_of(length, size) for length in lengths.tolist()], device)
            for lengths in (self.widths, self.heights)
        )
        columns, weights = (
            torch.where(self.mirrored, values.flip(-1), values) for values in along_rows
        )
        return (columns, weights), along_columns

    def source(self, columns: Tensor) -> Tensor:
        """A source pixel for each target column in every row: uint8 (n, 3, rows, size)."""
        return self.pixels.take(self.lines[..., None] + columns[:, None, None, :])


def resize_boxes(pictures: Sequence[Tensor], boxes: NDArray[np.int64], target: Tensor) -> None:
    """Scale a box of each picture (3, H, W) to ``target`` (n, 3, R, R); all uint8.

    ``boxes`` (n, 5): top, left, height, width, mirrored or not.
    """
    size = target.shape[-1]
    scales = 1.0 / (size / boxes[:, 2:4])
    shrinks = (scales >= 1).all(axis=1)
    whole = shrinks & (np.abs(scales - np.rint(scales)) < np.finfo(np.float64).eps).all(axis=1)
    for k in np.flatnonzero(whole).tolist():
        target[k] = _means(pictures[k], boxes[k], size)
    for chosen, way in ((shrinks & ~whole, _areas), (~shrinks, _blends)):
        which = np.flatnonzero(chosen)
        if len(which):
            some = _Boxes.of([pictures[k] for k in which.tolist()], boxes[which])
            scaled = way(some, size).to(torch.uint8)
            target.index_copy_(0, torch.from_numpy(which).to(target.device), scaled)


def _means(picture: Tensor, box: NDArray[np.int64], size: int) -> Tensor:
    """Each target pixel is the mean of a whole number of source pixels."""
    top, left, height, width, mirrored = box.tolist()
    y, x = height // size, width // size
    part = picture[:, top : top + height, left : left + width]
    total = part.reshape(3, size, y, size, x).sum((2, 4), dtype=torch.int32)
    if y == x == 2:
        mean = (total + 2) >> 2
    else:
        mean = (total.float() * float(np.float32(1) / np.float32(y * x))).round()
    return (mean.flip(-1) if mirrored else mean).to(torch.uint8)


def _areas(boxes: _Boxes, size: int) -> Tensor:
    """Each target pixel is the mean of the source's area under it: along rows, then columns."""
    (columns, column_shares), (rows, row_shares) = boxes.taps(_area_taps, size)
    lines = torch.zeros((*boxes.lines.shape, size), device=boxes.pixels.device)
    for tap in range(columns.shape[1]):
        lines += boxes.source(columns[:, tap]).float() * column_shares[:, tap, None, None, :]
    total = torch.zeros((len(lines), 3, size, size), device=lines.device)
    for tap in range(rows.shape[1]):
        total += _lines(lines, rows[:, tap]) * row_shares[:, tap, None, :, None]
    return total.round()


def _blends(boxes: _Boxes, size: int) -> Tensor:
    """Each target pixel blends two by two source pixels: along rows, then columns."""
    (columns, column_weights), (rows, row_weights) = boxes.taps(_blend_taps, size)
    left, right = (
        boxes.source(columns[:, side]).int() * column_weights[:, side, None, None, :].int()
        for side in range(2)
    )
    lines = (left + right) >> 4
    upper, lower = (
        (_lines(lines, rows[:, side]) * row_weights[:, side, None, :, None].int()) >> 16
        for side in range(2)
    )
    return (upper + lower + 2) >> 2


def _lines(lines: Tensor, rows: Tensor) -> Tensor:
    """Lines (n, 3, rows, size) at ``rows`` (n, size): (n, 3, size, size)."""
    size = lines.shape[-1]
    return lines.gather(2, rows[:, None, :, None].expand(-1, 3, -1, size))


def _together(taps: Sequence[Taps], device: torch.device) -> tuple[Tensor, Tensor]:
    """Taps of many boxes: two of (n, most taps, size) on the device; what is missing weighs 0."""
    shape = (len(taps), max(len(pixels) for pixels, _ in taps), taps[0][0].shape[1])
    pixels, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for k, (some, their) in enumerate(taps):
        pixels[k, : len(some)] = some
        weights[k, : len(their)] = their
    return torch.from_numpy(pixels).to(device).long(), torch.from_numpy(weights).to(device)


@functools.lru_cache(maxsize=4096)
def _area_taps(length: int, size: int) -> Taps:
    bounds, pixels, shares = area_shares(length, size, 1.0 / (size / length))
    firsts, counts = bounds[:-1], np.diff(bounds)
    tap = np.arange(counts.max())[:, None]
    at = np.minimum(firsts + tap, bounds[-1] - 1)
    weights = np.where(tap < counts, shares[at], 0)
    return pixels[at].astype(np.int32), weights.astype(np.float32)


@functools.lru_cache(maxsize=4096)
def _blend_taps(length: int, size: int) -> Taps:
    firsts, weights = blend_weights(length, size, 1.0 / (size / length))
    pixels = np.stack([firsts, np.minimum(firsts + 1, length - 1)])
    return pixels.astype(np.int32), weights.T.astype(np.float32)
