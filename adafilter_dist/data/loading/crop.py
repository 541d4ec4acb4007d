"""The random crop and flip as pure functions of (seed, epoch, sample index).

Both loaders take their boxes from here, so they crop alike, whatever worker, rank or batch a sample
falls to.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.loading.keyed import Purpose, uniforms

_TRIES = 10


def crop_boxes(
    seed: int,
    epoch: int,
    index: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Random boxes in pictures of the given sizes: (len(index), 4) of top, left, height, width.

    The area is uniform in ``scale`` (share of the picture), the aspect ratio log-uniform in
    ``ratio``; where ten tries do not fit, the largest central box of an allowed ratio. That is the
    distribution of torchvision's and FFCV's RandomResizedCrop.
    """
    u = uniforms(Purpose.CROP, seed, epoch, index, 4 * _TRIES).reshape(len(index), _TRIES, 4)
    height, width = heights[:, None], widths[:, None]
    area = (height * width) * (scale[0] + (scale[1] - scale[0]) * u[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = _exp(low + (high - low) * u[..., 1])
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first = np.arange(len(index)), fits.argmax(axis=1)
    w, h = w[rows, first], h[rows, first]
    top = (u[rows, first, 2] * (heights - h + 1)).astype(np.int64)
    left = (u[rows, first, 3] * (widths - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], axis=1)
    none = ~fits[rows, first]
    boxes[none] = _central_boxes(heights[none], widths[none], ratio)
    return boxes


def flips(seed: int, epoch: int, index: NDArray[np.int64], probability: float) -> NDArray[np.bool_]:
    """Which samples are mirrored left to right: (len(index),)."""
    return uniforms(Purpose.FLIP, seed, epoch, index, 1)[:, 0] < probability


def _central_boxes(
    heights: NDArray[np.int64], widths: NDArray[np.int64], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """The largest central boxes whose aspect ratio lies within ``ratio``."""
    h = np.minimum(heights, np.maximum(1, np.rint(widths / ratio[0]).astype(np.int64)))
    w = np.minimum(widths, np.maximum(1, np.rint(heights * ratio[1]).astype(np.int64)))
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], axis=1)


def _exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e**x by additions and multiplications alone, relative error below 1e-12 for abs(x) <= 5.

    numpy's own differs in the last bit from one kind of CPU to another.
    """
    x = x / 16
    result = np.ones_like(x)
    for n in range(12, 0, -1):
        result = 1 + x * result / n
    for _ in range(4):
        result = result * result
    return result
