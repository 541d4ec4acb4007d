"""How a picture becomes the network's input: the constants that travel with the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adafilter_dist.errors import UserError
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import Source, read_picture, to_stored_size

Interpolation = Literal["bilinear", "bicubic"]
Transform = Callable[[Source], Tensor]


@dataclass(frozen=True)
class Preprocess:
    """Normalisation (0..1 units), interpolation, and the sides (px) of resize and centre crop.

    ``stored_size`` is the shortest side (px) of the pictures that were prepared for training; None
    in exports of before it was kept, whose pictures go straight to ``resize``.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    resize: int
    crop: int
    stored_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`, also after a trip through JSON (lists become tuples)."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def evaluation_pixels(picture: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """An RGB picture resized and cropped as torchvision's presets do: uint8 (crop, crop, 3)."""
    from torchvision.transforms import v2

    resized = v2.functional.resize(
        picture,
        [preprocess.resize],
        interpolation=v2.InterpolationMode(preprocess.interpolation),
        antialias=True,
    )
    return np.asarray(v2.functional.center_crop(resized, [preprocess.crop]))


def pixels_of(source: Source, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Anything that `read_picture` takes, by the steps of `prepare` and evaluation: uint8 RGB.

    (crop, crop, 3), not normalised. Raises BadPicture.
    """
    picture = read_picture(source, preprocess.stored_size).picture
    if preprocess.stored_size is not None:
        picture = to_stored_size(picture, preprocess.stored_size)
    return evaluation_pixels(picture, preprocess)


def evaluation_transform(preprocess: Preprocess, *, pixels: bool = False) -> Transform:
    """Picture -> float32 tensor (3, crop, crop), by the steps of `prepare` and of evaluation.

    Takes a PIL picture, a path, a file's bytes, or an array as `read_picture` does: upright RGB,
    resized to the stored size, then to ``resize``, cropped, normalised. Only the store's JPEG is
    left out. The transform raises UserError for what is no picture, or would not be stored. With
    ``pixels`` it ends with them: uint8 (crop, crop, 3), not normalised.
    """
    mean = torch.tensor(preprocess.mean).view(3, 1, 1)
    std = torch.tensor(preprocess.std).view(3, 1, 1)

    def transform(source: Source) -> Tensor:
        try:
            read = pixels_of(source, preprocess)
        except BadPicture as error:
            raise UserError(f"{_name(source)} cannot be used: {error}") from None
        tensor = torch.from_numpy(np.array(read))
        return tensor if pixels else (tensor.permute(2, 0, 1).contiguous() / 255 - mean) / std

    return transform


def _name(source: Source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "")) or "the picture"
