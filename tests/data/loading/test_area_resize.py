"""The compiled resize gives OpenCV's pixels, to the bit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import pytest
from numba.core.types import abstract
from numpy.typing import NDArray

from adafilter_dist.data.loading.area_resize import resize_box
from adafilter_dist.data.loading.libjpeg import LIBRARY
from adafilter_dist.data.loading.numba_backend import _fill
from tests.data.conftest import needs_ffcv, picture


def scaled(
    source: NDArray[np.uint8], box: tuple[int, int, int, int], size: int, mirrored: bool = False
) -> NDArray[np.uint8]:
    target = np.empty((size, size, 3), np.uint8)
    top, left, height, width = box
    stride = source.strides[0]
    rows = source.reshape(-1)
    rows.flags.writeable = False  # the type that it is compiled for: see `compiled`
    resize_box(rows, top * stride + 3 * left, stride, height, width, target, mirrored)
    return target


def boxes(count: int) -> list[tuple[NDArray[np.uint8], tuple[int, int, int, int], int]]:
    """Pictures, boxes and sizes: smaller and larger, whole and broken scales, single pixels."""
    draws, found = np.random.default_rng(0), []
    for trial in range(count):
        height, width = (int(side) for side in draws.integers(1, 300, 2))
        size = int(draws.choice([1, 2, 7, 32, 64, 96, 160, 224]))
        if trial % 5 == 0:
            height, width = (int(side) * min(size, 96) for side in draws.integers(1, 4, 2))
        shape = (height + 9, width + 5, 3)
        if trial % 2:
            source = draws.integers(0, 256, shape, dtype=np.uint8)
        else:
            source = np.tile(picture(trial), (6, 6, 1))[: shape[0], : shape[1]]
        found.append((np.ascontiguousarray(source), (4, 2, height, width), size))
    return found


def test_pixels_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV (it comes with FFCV) is not installed")
    for source, (top, left, height, width), size in boxes(500):
        found = scaled(source, (top, left, height, width), size)
        box = source[top : top + height, left : left + width]
        wanted = cv2.resize(box, (size, size), interpolation=cv2.INTER_AREA)
        assert np.array_equal(found, wanted), (height, width, size)


@pytest.mark.slow
def test_pixels_of_the_opencv_that_ffcv_calls() -> None:
    needs_ffcv()
    from adafilter_dist.data.loading.ffcv_backend import _scale_into

    for source, box, size in boxes(300):
        wanted = np.empty((size, size, 3), np.uint8)
        _scale_into(wanted, source, np.array(box))
        assert np.array_equal(scaled(source, box, size), wanted), (box, size)


def test_mirrored() -> None:
    for source, box, size in boxes(50):
        plain, mirrored = scaled(source, box, size), scaled(source, box, size, mirrored=True)
        assert np.array_equal(mirrored, plain[:, ::-1])


@contextmanager
def another_number(array: NDArray[np.uint8]) -> Iterator[None]:
    """Inside, numba gives the type of ``array`` another number than it remembers where C asks.

    So it is where two threads have made the type at the same moment (`numba.core.types.abstract`).
    """
    cache = abstract._typecache
    type_of = numba.typeof(array)
    cache.pop(weakref.ref(type_of))
    try:
        assert numba.typeof(array)._code != type_of._code
        yield
    finally:
        cache.pop(weakref.ref(numba.typeof(array)), None)
        known = weakref.ref(type_of, abstract._on_type_disposal)
        cache[known] = known


@pytest.mark.slow
def test_compiled_code_calls_it_whatever_numbers_numba_gives_to_types() -> None:
    size, (source, (top, left, height, width), _) = 32, boxes(2)[1]
    rows = source.reshape(-1)
    index = np.array([[0, rows.size, source.shape[0], source.shape[1], 1]])
    box = np.array([[top, left, height, width, 0]])

    def filled() -> NDArray[np.uint8]:
        pixels = np.empty((1, size, size, 3), np.uint8)
        assert _fill(LIBRARY, rows, index, box, pixels) == -1
        return pixels[0]

    wanted = scaled(source, (top, left, height, width), size)
    assert np.array_equal(filled(), wanted)
    with another_number(rows.copy()):
        target = np.empty((size, size, 3), np.uint8)
        with pytest.raises(TypeError, match="No matching definition"):
            resize_box(source.copy().reshape(-1), 0, source.strides[0], 32, 32, target, False)
        assert np.array_equal(filled(), wanted)
