from __future__ import annotations

import numpy as np
import pytest

from adafilter_dist.data.loading.resize import resize_box
from tests.data.conftest import picture


def test_a_box_of_the_right_size_is_cut_out() -> None:
    source = picture(1)
    found = resize_box(source, np.array([3, 5, 20, 20]), 20, mirrored=False)
    assert np.array_equal(found, source[3:23, 5:25])
    mirrored = resize_box(source, np.array([3, 5, 20, 20]), 20, mirrored=True)
    assert np.array_equal(mirrored, source[3:23, 5:25][:, ::-1])


def test_halving_averages_four_pixels() -> None:
    source = picture(2)[:40, :40]
    found = resize_box(source, np.array([0, 0, 40, 40]), 20, mirrored=False)
    means = source.reshape(20, 2, 20, 2, 3).mean(axis=(1, 3))
    assert np.abs(found - means).max() <= 0.5


def test_a_flat_picture_stays_flat() -> None:
    source = np.full((90, 70, 3), 201, np.uint8)
    for size in (1, 7, 64, 70, 71, 200):
        assert (resize_box(source, np.array([0, 0, 90, 70]), size, mirrored=False) == 201).all()


def test_pixels_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV (it comes with FFCV) is not installed")
    draws = np.random.default_rng(0)
    for trial in range(400):
        height, width = (int(side) for side in draws.integers(1, 300, 2))
        size = int(draws.choice([1, 2, 7, 32, 64, 96, 160, 224]))
        if trial % 2:
            source = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
        else:
            source = np.ascontiguousarray(np.tile(picture(trial), (5, 5, 1))[:height, :width])
        found = resize_box(source, np.array([0, 0, height, width]), size, mirrored=False)
        theirs = cv2.resize(source, (size, size), interpolation=cv2.INTER_AREA)
        difference = np.abs(found.astype(int) - theirs)
        assert difference.max() <= 1, (height, width, size)
