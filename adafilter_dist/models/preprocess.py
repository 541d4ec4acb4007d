"""How a picture becomes the network's input: the constants that travel with the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image, ImageOps
from torch import Tensor, float32

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocess:
    """Normalisation (0..1 units), interpolation, and the sides (px) of resize and centre crop."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    resize: int
    crop: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`, also after a trip through JSON (lists become tuples)."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def evaluation_transform(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    """Picture -> float32 tensor (3, crop, crop): shortest side, centre crop, normalise."""
    from torchvision.transforms import v2

    mode = v2.InterpolationMode(preprocess.interpolation)
    steps = v2.Compose(
        [
            v2.Resize(preprocess.resize, interpolation=mode, antialias=True),
            v2.CenterCrop(preprocess.crop),
            v2.PILToTensor(),
            v2.ToDtype(float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
        ]
    )

    def transform(picture: Image.Image) -> Tensor:
        tensor: Tensor = steps(ImageOps.exif_transpose(picture).convert("RGB"))
        return tensor

    return transform
