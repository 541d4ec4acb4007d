"""Any picture file to upright 8-bit RGB pixels of the stored size."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

# A picture longer than this many times its width would be a huge strip once stored.
MAX_ASPECT = 50


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason, in a few words."""


def stored_pixels(content: bytes | NDArray[np.uint8], stored_size: int) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) whose shortest side is ``stored_size``, contiguous uint8.

    ``content`` is a picture file's bytes, or gray or RGB pixels. Raises BadPicture.
    """
    if isinstance(content, np.ndarray):
        picture = Image.fromarray(content).convert("RGB")
    else:
        picture = decode(content, stored_size)
    return np.array(_resize(picture, stored_size))


def decode(content: bytes, stored_size: int | None = None) -> Image.Image:
    """The first frame of a picture file, upright, in RGB, transparent parts on white.

    Given ``stored_size``, a JPEG several times larger may come back scaled down to no less than
    twice that. Raises BadPicture.
    """
    if not content:
        raise BadPicture("empty file")
    try:
        with warnings.catch_warnings():
            # Broken EXIF blocks and odd palettes are warned of, and do no harm to the pixels.
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            if stored_size is not None:
                picture.draft(None, (2 * stored_size, 2 * stored_size))
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)  # a copy would forget its format
            return _to_rgb(picture)
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture("not a picture, or of an unknown format") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise BadPicture(" ".join(str(error).split()) or type(error).__name__) from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        return _from_16_bit(picture)
    if picture.mode == "F":
        raise BadPicture("floating-point pixels, whose range is not known")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        # Pillow inverts every CMYK JPEG as Adobe's programs store them; others do not.
        picture = ImageChops.invert(picture)
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise BadPicture("32-bit integer pixels, whose range is not known")
    eight_bit = ((values * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(eight_bit).convert("RGB")


def _resize(picture: Image.Image, stored_size: int) -> Image.Image:
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short == 0:
        raise BadPicture("no pixels")
    if long > MAX_ASPECT * short:
        raise BadPicture(f"{width}x{height} px: more than {MAX_ASPECT} times longer than wide")
    if short == stored_size:
        return picture
    # Rounded down, as torchvision's Resize has it.
    other = stored_size * long // short
    size = (stored_size, other) if width == short else (other, stored_size)
    # Pillow widens the bicubic kernel when it shrinks, so nothing aliases.
    return picture.resize(size, Image.Resampling.BICUBIC)
