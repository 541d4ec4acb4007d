from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.data.prepare.read_pictures import stored_pixels
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import read_picture
from tests.pictures.odd_pictures import encoded, without_adobe_marker
from tests.shared.real_pictures import photographs


def decode(content: bytes, stored_size: int | None = None) -> Image.Image:
    return read_picture(content, stored_size).picture


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photograph, wider than high, 300x200."""
    with Image.open(photographs()[10]) as picture:
        return picture.convert("RGB").resize((300, 200), Image.Resampling.BICUBIC)


def pixels(picture: Image.Image) -> NDArray[np.int64]:
    return np.asarray(picture).astype(np.int64)


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size and a.mode == b.mode == "RGB"
    return float(np.abs(pixels(a) - pixels(b)).mean())


def test_rgb_png_comes_back_as_it_is(photo: Image.Image) -> None:
    assert mean_difference(decode(encoded(photo, "PNG")), photo) == 0


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_and_black_and_white_become_rgb(photo: Image.Image, mode: str) -> None:
    gray = photo.convert(mode)
    assert mean_difference(decode(encoded(gray, "PNG")), gray.convert("RGB")) == 0


def test_palette_is_looked_up(photo: Image.Image) -> None:
    palette = photo.quantize(64)
    decoded = decode(encoded(palette, "PNG"))
    assert mean_difference(decoded, palette.convert("RGB")) == 0
    assert mean_difference(decoded, photo) < 8


def test_transparent_palette_colour_is_white(photo: Image.Image) -> None:
    palette = photo.quantize(64)
    hidden = palette.getpixel((0, 0))
    decoded = pixels(decode(encoded(palette, "PNG", transparency=hidden)))
    holes = np.asarray(palette) == hidden
    assert (decoded[holes] == 255).all()
    assert (decoded[~holes] == pixels(palette.convert("RGB"))[~holes]).all()


def test_transparent_gray_is_white(photo: Image.Image) -> None:
    gray = photo.convert("L")
    hidden = gray.getpixel((0, 0))
    decoded = pixels(decode(encoded(gray, "PNG", transparency=hidden)))
    assert (decoded[np.asarray(gray) == hidden] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_alpha_is_laid_on_white(photo: Image.Image, mode: str, format: str) -> None:
    base = photo if mode == "RGBA" else photo.convert("L")
    alpha = Image.linear_gradient("L").resize(photo.size)
    see_through = base.copy()
    see_through.putalpha(alpha)
    weight = np.asarray(alpha)[..., None] / 255
    expected = pixels(base.convert("RGB")) * weight + 255 * (1 - weight)
    decoded = pixels(decode(encoded(see_through, format)))
    assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(photo: Image.Image, format: str) -> None:
    gray = np.asarray(photo.convert("L")).astype(np.uint16)
    decoded = decode(encoded(Image.fromarray(gray * 257), format))
    assert (pixels(decoded)[..., 0] == gray).all()
    assert decoded.mode == "RGB"
    # rounded, not cut: 383 / 257 = 1.49, 386 / 257 = 1.502
    two = decode(encoded(Image.fromarray(np.array([[383, 386]], np.uint16)), format))
    assert pixels(two)[0, :, 0].tolist() == [1, 2]


def test_adobe_cmyk_jpeg_is_not_negative(photo: Image.Image) -> None:
    # Pillow writes what Adobe's programs do: inverted, with Adobe's marker.
    content = encoded(photo.convert("CMYK"), "JPEG", quality=98)
    assert b"Adobe" in content
    assert mean_difference(decode(content), photo) < 4


def test_cmyk_jpeg_without_a_marker_is_read_as_one_with_it(photo: Image.Image) -> None:
    content = without_adobe_marker(encoded(photo.convert("CMYK"), "JPEG", quality=98))
    assert mean_difference(decode(content), photo) < 4
    cv2 = pytest.importorskip("cv2")
    by_opencv = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(pixels(decode(content)) - by_opencv).max() <= 2


def test_cmyk_tiff_is_read_as_it_is(photo: Image.Image) -> None:
    assert mean_difference(decode(encoded(photo.convert("CMYK"), "TIFF")), photo) < 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "unknown format"),
        (b"\xff\xd8\xff\xe0 no more", "."),
    ],
)
def test_what_is_no_picture_is_bad(content: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        stored_pixels(content, 64)


def test_unknown_ranges_are_bad_rather_than_guessed() -> None:
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    with pytest.raises(BadPicture, match="floating-point"):
        decode(encoded(Image.fromarray(ramp), "TIFF"))
    with pytest.raises(BadPicture, match="32-bit"):
        decode(encoded(Image.fromarray((ramp * 1e6).astype(np.int32)), "TIFF"))


@pytest.mark.parametrize(
    ("size", "stored"),
    [((300, 200), (96, 64)), ((200, 300), (64, 96)), ((28, 28), (64, 64)), ((333, 200), (106, 64))],
)
def test_shortest_side_is_the_stored_size(
    photo: Image.Image, size: tuple[int, int], stored: tuple[int, int]
) -> None:
    result = stored_pixels(encoded(photo.resize(size), "PNG"), 64)
    assert result.shape == (stored[1], stored[0], 3) and result.dtype == np.uint8
    assert result.flags.c_contiguous and result.flags.writeable


def test_a_strip_is_bad() -> None:
    with pytest.raises(BadPicture, match="60x1 px: more than 50 times"):
        stored_pixels(encoded(Image.new("RGB", (60, 1)), "PNG"), 64)


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    small = stored_pixels(encoded(Image.fromarray(stripes), "PNG"), 64)
    assert np.abs(small[4:-4, 4:-4].astype(int) - 127.5).max() < 3


def test_large_jpeg_decoded_at_a_smaller_scale_is_the_same_picture() -> None:
    content = photographs()[10].read_bytes()  # 1024x683 px
    quick = stored_pixels(content, 128)
    assert decode(content, 128).size == (512, 342)  # twice the stored size is kept
    full = stored_pixels(np.asarray(decode(content)), 128)
    assert quick.shape == full.shape
    difference = np.abs(quick.astype(int) - full).mean()
    shifted = np.abs(full[:, 1:].astype(int) - full[:, :-1]).mean()
    assert 0 < difference < shifted / 4


def test_pixels_in_memory_gray_and_colour(photo: Image.Image) -> None:
    gray = np.asarray(photo.convert("L"))
    assert (stored_pixels(gray, 200) == gray[..., None]).all()
    assert (stored_pixels(np.asarray(photo), 200) == np.asarray(photo)).all()


def test_a_strip_that_no_store_can_hold_is_bad(photo: Image.Image) -> None:
    strip = encoded(Image.new("RGB", (50, 1)), "PNG")
    assert stored_pixels(strip, 64).shape == (64, 3200, 3)
    message = r"50x1 px: 102,400 px long with a shortest side of 2,048 px \(data.stored_size\)"
    with pytest.raises(BadPicture, match=message):
        stored_pixels(strip, 2048)
