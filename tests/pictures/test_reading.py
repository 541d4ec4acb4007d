"""Whole files: turned, animated, truncated, too large, and what is left of an opened picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import Reading, read_picture
from tests.pictures.odd_pictures import TURNS, encoded, odd_pictures, photograph, turned
from tests.pictures.raw_files import GRAY, png


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return photograph()


def difference(reading: Reading, expected: Image.Image) -> float:
    assert reading.picture.size == expected.size and reading.picture.mode == "RGB"
    levels = np.asarray(reading.picture).astype(int) - np.asarray(expected)
    return float(np.abs(levels).mean())


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_followed(photo: Image.Image, format: str, orientation: int) -> None:
    content = turned(photo, orientation, format, quality=98)
    loaded, opened = (Image.open(io.BytesIO(content)) for _ in range(2))
    loaded.load()
    for source in (content, opened, loaded):
        assert difference(read_picture(source), photo) < 3
    assert loaded.getexif() == Image.open(io.BytesIO(content)).getexif() or format == "TIFF"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_is_read_or_the_one_that_is_open(photo: Image.Image, format: str) -> None:
    require(format)
    second = photograph(3)
    content = encoded(photo, format, save_all=True, append_images=[second], quality=90)
    assert difference(read_picture(content), photo) < 6
    opened = Image.open(io.BytesIO(content))
    assert opened.n_frames == 2  # type: ignore[attr-defined]
    opened.seek(1)
    assert difference(read_picture(opened), second) < 8


TRUNCATED = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF", "JPEG2000", "TGA", "PCX"]


def require(format: str) -> None:
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {format}")


@pytest.mark.parametrize("format", [*TRUNCATED, "ICO", "SGI"])
@pytest.mark.parametrize("part", [0.4, 0.99])
def test_a_truncated_file_is_bad(photo: Image.Image, format: str, part: float) -> None:
    require(format)
    content = encoded(photo, format)
    read_picture(content)
    with pytest.raises(BadPicture):
        read_picture(content[: int(len(content) * part)])


def test_a_decompression_bomb_is_one_line() -> None:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, GRAY, 0, 0, 0)
    small = png(1, 8, GRAY, [b"\0"])
    chunk = b"IHDR" + header
    bomb = small[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(BadPicture) as caught:
        read_picture(bomb + small[33:])
    assert str(caught.value) == "more than 178,956,970 pixels, Pillow's limit"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_are_bad_and_nothing_else_is_raised() -> None:
    random = np.random.default_rng(0)
    bad = 0
    for _, content in odd_pictures():
        for _ in range(4):
            damaged = bytearray(content)
            for place in random.integers(0, min(len(content), 600), 3):
                damaged[place] = random.integers(256)
            try:
                read_picture(bytes(damaged), 64)
            except BadPicture as error:
                bad += 1
                assert str(error) and "\n" not in str(error)
    assert bad > 10


def test_a_format_that_is_no_picture_stays_unread() -> None:
    postscript = Image.open(io.BytesIO(encoded(Image.new("RGB", (8, 8)), "EPS")))
    with pytest.raises(BadPicture, match="format EPS, which is not read"):
        read_picture(postscript)
