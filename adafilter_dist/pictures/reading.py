"""Any picture - a file, an opened one, an array - to upright 8-bit RGB, always in the same way."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from adafilter_dist.pictures.formats import is_picture_format, picture_formats
from adafilter_dist.pictures.modes import BadPicture, GrayRange, gray_range, to_rgb
from adafilter_dist.pictures.png_key import mend_key, needs_mending

# Version of how files become pixels. It rises when pictures that could be read before are read to
# other pixels; `_decoding` says which. A format that could not be read before does not raise it.
# Version 1 inverted CMYK JPEGs without Adobe's marker, took the transparent colour of a PNG for
# opaque where its pixels are not of 8 bits, and ignored the range that a 16-bit TIFF declares.
DECODING = 2
# A picture longer than this many times its width would be a huge strip once stored.
MAX_ASPECT = 50
# What libjpeg can write; the rows of a store hold no more than 65,535 either.
MAX_SIDE = 65_500

Source = bytes | str | Path | NDArray[Any] | Image.Image


@dataclass(frozen=True)
class Reading:
    """A picture, upright and in RGB; ``brightest`` is its largest value if it is 16-bit gray.

    ``decoding`` is the number of the first decoding that reads it in this way.
    """

    picture: Image.Image
    brightest: int | None = None
    decoding: int = 1


def read_picture(source: Source, stored_size: int | None = None) -> Reading:
    """Read the first frame of a file (its bytes or path), an opened picture, or an array.

    Arrays are gray (H, W), with alpha (H, W, 2), RGB (H, W, 3) or RGBA (H, W, 4), of uint8 or
    uint16. Transparent parts are laid on white. Given ``stored_size``, a JPEG several times larger
    may come back scaled down to no less than twice that. Opened pictures are left as they are.
    Raises BadPicture.
    """
    try:
        if isinstance(source, np.ndarray):
            return Reading(*to_rgb(_from_array(source), GrayRange()))
        if isinstance(source, Image.Image):
            return _read_opened(source, stored_size)
        if isinstance(source, bytes | str | Path):
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            return _read_file(content, stored_size)
    except (BadPicture, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadPicture("not a picture, or of an unknown format") from None
    except FileNotFoundError:
        raise BadPicture("no such file") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadPicture(f"more than {most:,} pixels, Pillow's limit") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise BadPicture(" ".join(str(error).split()) or type(error).__name__) from None
    raise BadPicture(
        f"a {type(source).__name__}; a picture is a path, a file's bytes, a PIL picture or an array"
    )


def content_of(path: Path) -> bytes:
    """The bytes of a file. Raises OSError.

    BadPicture for a pipe or a device: reading one may never end.
    """
    # Opening a pipe would wait for somebody who writes to it.
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadPicture("a pipe or a device, and no file")
        return file.read()


def _at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


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


def decoding_of(content: bytes | NDArray[Any]) -> int:
    """``Reading.decoding`` of a file, from its header alone; 1 for what cannot be read."""
    if isinstance(content, np.ndarray):
        return 1
    try:
        return _decoding(_open(content))
    except Exception:
        return 1


def _open(content: bytes) -> ImageFile.ImageFile:
    if not content:
        raise BadPicture("empty file")
    opened: ImageFile.ImageFile = Image.open(io.BytesIO(content), formats=picture_formats())
    return opened


def _read_file(content: bytes, stored_size: int | None) -> Reading:
    picture = _open(content)
    decoding, gray = _decoding(picture), gray_range(picture)
    if stored_size is not None:
        picture.draft(None, (2 * stored_size, 2 * stored_size))
    if needs_mending(picture):
        mend_key(picture, content)
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return Reading(*to_rgb(picture, gray), decoding)


def _read_opened(picture: Image.Image, stored_size: int | None) -> Reading:
    """Read it from its file where nothing is loaded yet, by the very steps of a file."""
    if picture.format is not None and not is_picture_format(picture.format):
        raise BadPicture(f"of the format {picture.format}, which is not read")
    content = _unloaded_file(picture)
    if content is not None:
        return _read_file(content, stored_size)
    decoding, gray = _decoding(picture), gray_range(picture)
    return Reading(*to_rgb(ImageOps.exif_transpose(picture), gray), decoding)


def _unloaded_file(picture: Image.Image) -> bytes | None:
    """The file of a picture that Pillow has opened and not yet read, else None."""
    if not isinstance(picture, ImageFile.ImageFile) or not picture.tile or picture.tell() != 0:
        return None
    file = picture.fp
    if file is None or file.closed:
        return None
    place = file.tell()
    try:
        file.seek(0)
        return file.read()
    finally:
        file.seek(place)


def _decoding(picture: Image.Image) -> int:
    """The first decoding that reads the picture in this way; call it before anything is loaded."""
    plain_cmyk = picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info
    keyed = "transparency" in picture.info and (
        picture.mode.startswith("I") or needs_mending(picture)
    )
    ranged = picture.mode.startswith("I") and gray_range(picture) != GrayRange()
    return DECODING if plain_cmyk or keyed or ranged else 1


def _from_array(array: NDArray[Any]) -> Image.Image:
    """As a picture; RGB and RGBA of 16 bits are scaled to 8."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise BadPicture(
            f"an array of shape {array.shape}; allowed are (H, W) and (H, W, C) with C from 1 to 4"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise BadPicture(f"an array of {array.dtype}; allowed are uint8 and uint16")
    if array.dtype == np.uint16 and array.ndim == 3:
        array = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))
