"""RandAugment and TrivialAugmentWide on uint8 pictures, drawn by (seed, epoch, sample index).

Done by Pillow, through torchvision: one core a picture, so that it can run in a pool of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, fromarray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from adafilter_dist.data.loading.keyed import Purpose, uniforms
from adafilter_dist.recipe.sections.data import Augment

_BINS = 31  # of the magnitudes in both papers


@dataclass(frozen=True)
class _Operation:
    """``apply(picture, magnitude)``; ``magnitude`` maps (strength in 0..1, side in px) to it."""

    apply: Callable[[Image, float], Image]
    magnitude: Callable[[float, int], float] = lambda strength, side: strength
    signed: bool = False


def _affine(
    picture: Image,
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Image:
    # A shear slides the rows from the top left corner, as in the papers, not from the centre.
    corner = [0.0, 0.0] if shear != (0.0, 0.0) else None
    moved: Image = F.affine(
        picture,
        angle=0.0,
        translate=[int(pixels) for pixels in shift],
        scale=1.0,
        shear=[math.degrees(math.atan(slope)) for slope in shear],
        interpolation=InterpolationMode.NEAREST,
        center=corner,
    )
    return moved


def _linear(most: float) -> Callable[[float, int], float]:
    return lambda strength, side: strength * most


def _enhancement(most: float) -> Callable[[float, int], float]:
    """The signed strength as a factor around 1: 1 - most .. 1 + most."""
    return lambda strength, side: 1 + strength * most


def _posterized_bits(fewest: int) -> Callable[[float, int], float]:
    return lambda strength, side: 8 - round(strength * (8 - fewest))


def _operations(
    shear: float,
    shift: Callable[[float, int], float],
    rotation: float,
    enhancement: float,
    bits: int,
) -> tuple[_Operation, ...]:
    """The fourteen operations of both papers; they differ in how far each goes."""
    factor = _enhancement(enhancement)
    return (
        _Operation(lambda p, m: p),
        _Operation(lambda p, m: _affine(p, shear=(m, 0)), _linear(shear), signed=True),
        _Operation(lambda p, m: _affine(p, shear=(0, m)), _linear(shear), signed=True),
        _Operation(lambda p, m: _affine(p, shift=(m, 0)), shift, signed=True),
        _Operation(lambda p, m: _affine(p, shift=(0, m)), shift, signed=True),
        _Operation(F.rotate, _linear(rotation), signed=True),
        _Operation(F.adjust_brightness, factor, signed=True),
        _Operation(F.adjust_saturation, factor, signed=True),
        _Operation(F.adjust_contrast, factor, signed=True),
        _Operation(F.adjust_sharpness, factor, signed=True),
        _Operation(lambda p, m: F.posterize(p, int(m)), _posterized_bits(bits)),
        _Operation(lambda p, m: F.solarize(p, m), lambda strength, side: 255 * (1 - strength)),
        _Operation(lambda p, m: F.autocontrast(p)),
        _Operation(lambda p, m: F.equalize(p)),
    )


# Cubuk et al. 2020 (ranges of AutoAugment; shifts of 150 px on 331) and Mueller & Hutter 2021.
_RANDAUGMENT = _operations(0.3, lambda strength, side: strength * 150 / 331 * side, 30, 0.9, 4)
_TRIVIALAUGMENT = _operations(0.99, lambda strength, side: strength * 32, 135, 0.99, 2)


@dataclass(frozen=True)
class Policy:
    """A few random operations a picture; ``bin`` None draws the magnitude too."""

    seed: int
    operations: tuple[_Operation, ...]
    count: int
    bin: int | None

    def __call__(self, images: Tensor, index: NDArray[np.int64], epoch: int) -> Tensor:
        """Change uint8 (m, 3, R, R) in place, being the samples ``index`` (m,); returns it."""
        draws = uniforms(Purpose.POLICY, self.seed, epoch, index, 3 * self.count)
        pixels = images.permute(0, 2, 3, 1).numpy()
        for k, row in enumerate(draws):
            picture = self._picture(fromarray(pixels[k]), row.reshape(self.count, 3))
            pixels[k] = np.asarray(picture)
        return images

    def _picture(self, picture: Image, draws: NDArray[np.float64]) -> Image:
        side = picture.width
        for which, how_far, sign in draws:
            operation = self.operations[int(which * len(self.operations))]
            bin = int(how_far * _BINS) if self.bin is None else self.bin
            strength = bin / (_BINS - 1)
            if operation.signed and sign < 0.5:
                strength = -strength
            picture = operation.apply(picture, operation.magnitude(strength, side))
        return picture


def policy_of(augment: Augment, seed: int) -> Policy | None:
    """The recipe's policy, None for ``augment.policy=none``."""
    if augment.policy == "randaugment":
        count, bin = augment.randaugment_ops, augment.randaugment_magnitude
        return Policy(seed, _RANDAUGMENT, count, bin)
    if augment.policy == "trivialaugment":
        return Policy(seed, _TRIVIALAUGMENT, 1, None)
    return None
