"""Real photographs as files of every kind: sixteen bits, alpha, ink, animations, turned."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.shared.real_pictures import photographs

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photograph(number: int = 10) -> Image.Image:
    """A photograph, wider than high, 300x200."""
    with Image.open(photographs()[number]) as picture:
        return picture.convert("RGB").resize((300, 200), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def turned(picture: Image.Image, orientation: int, format: str, **options: Any) -> bytes:
    """A file that shows the picture once its EXIF orientation is followed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = TURNS[orientation]
    stored = picture if turn is None else picture.transpose(turn)
    return encoded(stored, format, exif=exif, **options)


def without_adobe_marker(jpeg: bytes) -> bytes:
    """A JPEG that Pillow wrote of ink, as other programs write it."""
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    assert jpeg[start + 4 : start + 9] == b"Adobe"
    return jpeg[:start] + jpeg[start + 2 + length :]


def odd_pictures() -> Iterator[tuple[str, bytes]]:
    """(name with suffix, file) of one kind each, all of the same photograph."""
    photo, other = photograph(), photograph(3)
    gray = photo.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    see_through = photo.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    palette = photo.quantize(64)
    ink = encoded(photo.convert("CMYK"), "JPEG", quality=98)
    yield "gray16.png", encoded(deep, "PNG")
    yield "gray16-key.png", encoded(deep, "PNG", transparency=deep.getpixel((0, 0)))
    yield "gray16.tif", encoded(deep, "TIFF")
    yield "gray.jpg", encoded(gray, "JPEG")
    yield "alpha.png", encoded(see_through, "PNG")
    yield "alpha.webp", encoded(see_through, "WEBP", lossless=True)
    yield "palette.gif", encoded(palette, "GIF", transparency=palette.getpixel((0, 0)))
    yield "animation.gif", encoded(photo, "GIF", save_all=True, append_images=[other])
    yield "animation.webp", encoded(photo, "WEBP", save_all=True, append_images=[other])
    yield "animation.png", encoded(photo, "PNG", save_all=True, append_images=[other])
    yield "pages.tif", encoded(photo, "TIFF", save_all=True, append_images=[other])
    yield "ink.jpg", ink
    yield "ink-plain.jpg", without_adobe_marker(ink)
    yield "ink.tif", encoded(photo.convert("CMYK"), "TIFF")
    yield "lab.tif", encoded(lab_of(photo), "TIFF")
    yield "turned.jpg", turned(photo, 6, "JPEG")
    yield "turned.tif", turned(photo, 8, "TIFF")
    yield "turned.png", turned(photo, 3, "PNG")
    yield "large.jpg", photographs()[10].read_bytes()


def lab_of(picture: Image.Image) -> Image.Image:
    """The picture in CIE L*a*b*."""
    return picture.convert("LAB")
