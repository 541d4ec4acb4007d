"""Pictures brought to a size by their shortest side."""

from __future__ import annotations

from PIL import Image

from adafilter_dist.pictures.modes import BadPicture

# A picture longer than this many times its width would be a huge strip once stored.
MAX_ASPECT = 50
# What libjpeg can write; the rows of a store hold no more than 65,535 either.
MAX_SIDE = 65_500


def to_stored_size(picture: Image.Image, stored_size: int) -> Image.Image:
    """The picture with its shortest side at ``stored_size`` px. Raises BadPicture for a strip."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short == 0:
        raise BadPicture("no pixels")
    if long > MAX_ASPECT * short:
        raise BadPicture(f"{width}x{height} px: more than {MAX_ASPECT} times longer than wide")
    # Rounded down, as torchvision's Resize has it.
    other = stored_size * long // short
    if other > MAX_SIDE:
        raise BadPicture(
            f"{width}x{height} px: {other:,} px long with a shortest side of {stored_size:,} px "
            f"(data.stored_size), and at most {MAX_SIDE:,} px can be stored"
        )
    if short == stored_size:
        return picture
    size = (stored_size, other) if width == short else (other, stored_size)
    # Pillow widens the bicubic kernel when it shrinks, so nothing aliases.
    return picture.resize(size, Image.Resampling.BICUBIC)
