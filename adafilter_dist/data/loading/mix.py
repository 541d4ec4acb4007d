"""What is done to normalised micro-batches: random erasing, mixup, CutMix.

Erasing is keyed by (seed, epoch, sample index), mixing by (seed, step, micro-batch): none depends
on world size or history. Label smoothing is left to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.loading.keyed import Purpose, permutation, sequence, uniforms
from adafilter_dist.recipe.sections.data import Augment

_ERASED_AREA = (0.02, 0.33)
_ERASED_RATIO = (0.3, 3.3)


def mix_each(
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    augment: Augment,
    *,
    seed: int,
    epoch: int,
    step: int,
    micro_batches: Sequence[int],
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """`mix` for each of several micro-batches, which lie one after the other in ``images``."""
    if not (augment.erasing or augment.mixup or augment.cutmix):
        return images, labels
    size = len(images) // len(micro_batches)
    each = zip(
        micro_batches, images.split(size), labels.split(size), index.split(size), strict=True
    )
    mix_one = partial(
        mix, augment=augment, seed=seed, epoch=epoch, step=step, num_classes=num_classes
    )
    mixed = [mix_one(*parts, micro_batch=micro_batch) for micro_batch, *parts in each]
    if len(mixed) == 1:
        return mixed[0]
    return torch.cat([part for part, _ in mixed]), torch.cat([targets for _, targets in mixed])


def mix(
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    augment: Augment,
    *,
    seed: int,
    epoch: int,
    step: int,
    micro_batch: int,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Images (m, 3, R, R) and targets as the recipe has them, of the images' dtype and device.

    Targets are the labels (m,) as given where nothing is mixed, else probabilities (m, classes).
    With both mixup and cutmix on, each micro-batch gets one of them, with equal chances.
    """
    if augment.erasing:
        images = erase(images, index, augment.erasing, seed=seed, epoch=epoch)
    if not augment.mixup and not augment.cutmix:
        return images, labels
    key = (Purpose.MIXING, seed, step, micro_batch)
    partner = _beside(images, torch.from_numpy(permutation(*key, count=len(images))))
    draws = np.random.Generator(np.random.Philox(sequence(*key)).jumped())
    cut = draws.random() < 0.5 if augment.mixup and augment.cutmix else bool(augment.cutmix)
    alpha = augment.cutmix if cut else augment.mixup
    share = float(draws.beta(alpha, alpha))
    if cut:
        images, share = _cutmix(images, partner, share, draws)
    else:
        images = images * share + images[partner] * (1 - share)
    targets = functional.one_hot(labels, num_classes).to(images.dtype)
    return images, targets * share + targets[partner] * (1 - share)


def erase(images: Tensor, index: Tensor, probability: float, *, seed: int, epoch: int) -> Tensor:
    """A copy with a random box of some images set to 0, the mean (Zhong et al., 2017).

    The box takes 2 to 33 % of the area at an aspect ratio of 0.3 to 3.3.
    """
    height, width = images.shape[2:]
    images = images.clone()
    draws = uniforms(Purpose.ERASING, seed, epoch, index.cpu().numpy(), 5)
    low, high = (math.log(ratio) for ratio in _ERASED_RATIO)
    for image, (chance, size, shape, down, right) in zip(images, draws, strict=True):
        if chance >= probability:
            continue
        area = (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * size) * height * width
        aspect = math.exp(low + (high - low) * shape)
        h = min(height, max(1, round(math.sqrt(area * aspect))))
        w = min(width, max(1, round(math.sqrt(area / aspect))))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        image[:, top : top + h, left : left + w] = 0
    return images


def _beside(images: Tensor, host: Tensor) -> Tensor:
    """A small tensor of the host on the images' device; the host does not wait for the copy."""
    if images.is_cuda:
        host = host.pin_memory()
    return host.to(images.device, non_blocking=True)


def _cutmix(
    images: Tensor, partner: Tensor, share: float, draws: np.random.Generator
) -> tuple[Tensor, float]:
    """Put a box of the partner into each image; the share that is left of the image itself."""
    height, width = images.shape[2:]
    side = math.sqrt(1 - share)
    y, x = draws.random() * height, draws.random() * width
    top, bottom = (min(height, max(0, round(y + s * side * height / 2))) for s in (-1, 1))
    left, right = (min(width, max(0, round(x + s * side * width / 2))) for s in (-1, 1))
    images = images.clone()
    box = (..., slice(top, bottom), slice(left, right))
    images[box] = images[partner][box]
    return images, 1 - (bottom - top) * (right - left) / (height * width)
