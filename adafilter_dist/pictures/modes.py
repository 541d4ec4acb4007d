"""Every kind of pixel that Pillow has, as 8-bit RGB; what is transparent is laid on white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True)
class GrayRange:
    """The values of black and white in gray of more than 8 bits."""

    black: int = 0
    white: int = 65535


def gray_range(picture: Image.Image) -> GrayRange:
    """The range that the picture's file declares; a turned copy no longer knows it."""
    tags = getattr(picture, "tag_v2", {})
    white = 4095 if tags.get(_BITS) == (12,) else 65535
    # Where 0 stands for white, Pillow inverts gray of 8 bits, but not of 16.
    return GrayRange(white, 0) if tags.get(_PHOTOMETRIC) == 0 else GrayRange(0, white)


def to_rgb(picture: Image.Image, gray: GrayRange) -> tuple[Image.Image, int | None]:
    """The picture in RGB, and the brightest value where it is gray of 16 bits, else None.

    Raises BadPicture for pixels whose range is not known.
    """
    if picture.mode.startswith("I"):
        return _from_16_bit(picture, gray)
    if picture.mode == "F":
        raise BadPicture("floating-point pixels, whose range is not known")
    if picture.has_transparency_data:
        return _on_white(picture), None
    return picture.convert("RGB"), None


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":  # Pillow converts it to LA alone
        picture = picture.convert("LA")
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # Of a PNG with 16 bits a colour, which Pillow has cut to their upper 8.
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _from_16_bit(picture: Image.Image, gray: GrayRange) -> tuple[Image.Image, int | None]:
    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise BadPicture("32-bit integer pixels, whose range is not known")
    span = abs(gray.white - gray.black)
    scaled = (np.abs(values - gray.black) * 255 + span // 2) // span
    eight_bit = np.minimum(scaled, 255).astype(np.uint8)
    eight_bit[values == picture.info.get("transparency")] = 255
    brightest = int(values.max(initial=0)) if gray == GrayRange() else None
    return Image.fromarray(eight_bit).convert("RGB"), brightest
