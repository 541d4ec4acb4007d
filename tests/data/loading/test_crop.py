from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from adafilter_dist.data.loading.crop import _exp, crop_boxes, flips

RATIO = (3 / 4, 4 / 3)


def draw(
    index: np.ndarray,
    height: int = 256,
    width: int = 341,
    *,
    seed: int = 0,
    epoch: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    sides = np.full(len(index), height), np.full(len(index), width)
    return crop_boxes(seed, epoch, index, *sides, scale, ratio)


def test_a_box_depends_on_seed_epoch_and_sample_alone() -> None:
    index = np.arange(1000)
    together = draw(index)
    alone = np.concatenate([draw(index[k : k + 1]) for k in range(1000)])
    assert np.array_equal(together, alone)
    backwards = draw(index[::-1])
    assert np.array_equal(together, backwards[::-1])
    for other in (draw(index, seed=1), draw(index, epoch=1), draw(index + 1000)):
        assert (together == other).all(axis=1).mean() < 0.01
    assert not np.array_equal(draw(index, seed=0, epoch=1), draw(index, seed=1, epoch=0))


@pytest.mark.parametrize(("height", "width"), [(256, 341), (341, 256), (64, 640), (9, 7), (1, 50)])
def test_boxes_lie_within_the_picture(height: int, width: int) -> None:
    top, left, h, w = draw(np.arange(5000), height, width).T
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 400), (600, 256), (256, 2000)])
def test_distribution_of_torchvision(height: int, width: int) -> None:
    count = 4000
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, [0.08, 1.0], list(RATIO)) for _ in range(count)]
    )
    ours = draw(np.arange(count), height, width, seed=3)
    for column in range(4):
        both = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        steps = [np.searchsorted(np.sort(x[:, column]), both, "right") for x in (ours, theirs)]
        distance = np.abs(steps[0] - steps[1]).max() / count
        # Kolmogorov-Smirnov: exceeded by chance once in 10,000.
        assert distance < math.sqrt(-math.log(0.5e-4) / count)


def test_where_nothing_fits_the_largest_central_box_is_taken() -> None:
    fallback = dict(scale=(1.0, 1.0), ratio=(0.9, 1.1))
    assert draw(np.arange(3), 100, 300, **fallback).tolist() == [[0, 95, 100, 110]] * 3
    assert draw(np.arange(3), 300, 90, **fallback).tolist() == [[100, 0, 100, 90]] * 3
    torchvisions = RandomResizedCrop.get_params(torch.empty(3, 100, 300), [1.0, 1.0], [0.9, 1.1])
    assert torchvisions == (0, 95, 100, 110)


def test_the_boxes_are_what_they_were() -> None:
    """On every machine, and in every release: a run may be resumed on another one."""
    sides = np.array([256, 256]), np.array([341, 256])
    found = crop_boxes(7, 1, np.array([0, 5]), *sides, (0.08, 1.0), RATIO)
    assert found.tolist() == [[0, 17, 232, 274], [80, 111, 142, 120]]


def test_flips() -> None:
    index = np.arange(20000)
    chosen = flips(0, 0, index, 0.3)
    assert abs(chosen.mean() - 0.3) < 0.015  # four standard errors
    assert not np.array_equal(chosen, flips(0, 1, index, 0.3))
    assert not flips(0, 0, index, 0.0).any() and flips(0, 0, index, 1.0).all()


def test_exponential() -> None:
    x = np.linspace(-5, 5, 10001)
    assert np.abs(_exp(x) / np.exp(x) - 1).max() < 1e-12
