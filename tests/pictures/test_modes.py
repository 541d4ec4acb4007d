"""Every kind of pixel, from files written byte by byte, against values worked out by hand."""

from __future__ import annotations

import colorsys
import struct
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.pictures.reading import Source, read_picture
from tests.pictures.raw_files import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, png, tiff

WHITE = [255, 255, 255]


def rgb_of(source: Source) -> list[list[int]]:
    """The pixels, row by row."""
    picture = read_picture(source).picture
    assert picture.mode == "RGB"
    return np.asarray(picture).reshape(-1, 3).tolist()


def gray_of(source: Source) -> list[int]:
    values = rgb_of(source)
    assert all(len(set(value)) == 1 for value in values)
    return [value[0] for value in values]


def shorts(*values: int, order: str = ">") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


@pytest.mark.parametrize(
    ("depth", "row", "gray"),
    [
        (1, 0b01000000, [0, 255]),
        (2, 0b01001011, [85, 0, 170, 255]),
        (4, 0x2F, [34, 255]),
    ],
)
def test_gray_of_few_bits_and_its_transparent_value(depth: int, row: int, gray: list[int]) -> None:
    assert gray_of(png(len(gray), depth, GRAY, [bytes([row])])) == gray
    first = row >> 8 - depth
    keyed = png(len(gray), depth, GRAY, [bytes([row])], transparent=shorts(first))
    assert gray_of(keyed) == [255, *gray[1:]]


def test_gray_of_16_bits_is_rounded_and_its_transparent_value_is_exact() -> None:
    row = shorts(0, 383, 386, 28000, 28001, 65535)  # 383 / 257 = 1.49, 386 / 257 = 1.502
    assert gray_of(png(6, 16, GRAY, [row])) == [0, 1, 2, 109, 109, 255]
    keyed = png(6, 16, GRAY, [row], transparent=shorts(28000))
    assert gray_of(keyed) == [0, 1, 2, 255, 109, 255]


def test_colour_of_16_bits_is_cut_to_8() -> None:
    row = shorts(0, 255, 256, 28000, 65279, 65535)
    assert rgb_of(png(2, 16, RGB, [row])) == [[0, 0, 1], [109, 254, 255]]


def test_transparent_colour_of_16_bits_is_compared_whole() -> None:
    first, second = (1000, 2000, 3000), (1000, 2001, 3000)
    row = shorts(*first, *second)
    keyed = png(2, 16, RGB, [row], transparent=shorts(*first))
    assert rgb_of(keyed) == [WHITE, [3, 7, 11]]


def test_transparent_colour_of_8_bits() -> None:
    keyed = png(2, 8, RGB, [bytes([1, 2, 3, 1, 2, 4])], transparent=shorts(1, 2, 3))
    assert rgb_of(keyed) == [WHITE, [1, 2, 4]]


def test_alpha_of_8_and_16_bits() -> None:
    assert rgb_of(png(2, 8, RGBA, [bytes([10, 20, 30, 0, 10, 20, 30, 255])])) == [
        WHITE,
        [10, 20, 30],
    ]
    assert gray_of(png(2, 8, GRAY_ALPHA, [bytes([100, 51, 100, 255])])) == [224, 100]
    half = png(1, 16, RGBA, [shorts(0, 65535, 25700, 0x3333)])  # alpha 0.2
    assert rgb_of(half) == [[204, 255, 224]]
    assert gray_of(png(1, 16, GRAY_ALPHA, [shorts(25700, 0x3333)])) == [224]


def test_palette_and_the_alpha_of_its_colours() -> None:
    colours = bytes([10, 20, 30, 0, 0, 0, 90, 80, 70, 9, 9, 9])
    row = bytes([0b00011011])
    assert rgb_of(png(4, 2, PALETTE, [row], palette=colours)) == [
        [10, 20, 30],
        [0, 0, 0],
        [90, 80, 70],
        [9, 9, 9],
    ]
    keyed = png(4, 2, PALETTE, [row], palette=colours, transparent=bytes([255, 51, 0]))
    assert rgb_of(keyed) == [[10, 20, 30], [204, 204, 204], WHITE, [9, 9, 9]]
    one = png(4, 2, PALETTE, [row], palette=colours, transparent=bytes([255, 0]))
    assert rgb_of(one)[1] == WHITE


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_16_bits(order: str) -> None:
    strip = shorts(0, 386, 65535, order=order)
    assert gray_of(tiff(3, 1, [16], 1, strip, order=order)) == [0, 2, 255]
    colour = tiff(1, 1, [16] * 3, 2, strip, order=order)
    assert rgb_of(colour) == [[0, 1, 255]]


def test_tiff_whose_zero_is_white() -> None:
    assert gray_of(tiff(3, 1, [8], 0, bytes([0, 55, 255]))) == [255, 200, 0]
    assert gray_of(tiff(2, 1, [16], 0, shorts(0, 65535, order="<"))) == [255, 0]


def test_tiff_that_says_12_bits() -> None:
    # two samples in three bytes: 0xFFF and 0x800 = 2048
    assert gray_of(tiff(2, 1, [12], 1, bytes([0xFF, 0xF8, 0x00]))) == [255, 128]


def test_tiff_with_alpha_of_both_kinds() -> None:
    associated, unassociated = {338: [1]}, {338: [2]}
    pixel = bytes([20, 40, 50, 51])  # alpha 0.2
    premultiplied = rgb_of(tiff(1, 1, [8] * 4, 2, pixel, more=associated))
    # c + 255 (1 - a), up to Pillow's way over unpremultiplied bytes
    assert np.abs(np.array(premultiplied) - [[224, 244, 254]]).max() <= 1
    assert rgb_of(tiff(1, 1, [8] * 4, 2, pixel, more=unassociated)) == [[208, 212, 214]]


def test_gray_tiff_with_premultiplied_alpha() -> None:
    content = tiff(1, 1, [8, 8], 1, bytes([20, 51]), more={338: [1]})
    if PIL.__version__ < "12":
        pytest.skip("this Pillow does not know it")
    gray = rgb_of(content)
    assert np.abs(np.array(gray) - 224).max() <= 1


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 0, 0, 0), WHITE), ((255, 0, 0, 0), [0, 255, 255]), ((0, 51, 255, 102), [153, 122, 0])],
)
def test_cmyk_tiff_is_ink(cmyk: tuple[int, ...], rgb: list[int]) -> None:
    assert rgb_of(tiff(1, 1, [8] * 4, 5, bytes(cmyk))) == [rgb]


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [
        ((50, 0, 0), [119, 119, 119]),
        ((60, 30, -20), [183, 125, 181]),  # of D50, through XYZ to sRGB
        ((40, -30, 40), [54, 106, 17]),
    ],
)
def test_lab_tiff(lab: tuple[int, int, int], rgb: list[int]) -> None:
    light, a, b = round(lab[0] * 2.55), lab[1] & 255, lab[2] & 255
    found = rgb_of(tiff(1, 1, [8] * 3, 8, bytes([light, a, b])))
    assert np.abs(np.array(found) - rgb).max() <= 1


def test_ycbcr_picture() -> None:
    # R = Y + 1.402 (Cr - 128), B = Y + 1.772 (Cb - 128), G = Y - 0.344 (Cb-128) - 0.714 (Cr-128)
    pixel = bytes([100, 108, 148])
    found = rgb_of(Image.frombytes("YCbCr", (1, 1), pixel))
    assert np.abs(np.array(found) - [[128, 93, 65]]).max() <= 1


def test_hsv_picture() -> None:
    hue, saturation, value = 0.25, 0.6, 0.8
    expected = [255 * c for c in colorsys.hsv_to_rgb(hue, saturation, value)]
    pixel = tuple(round(255 * c) for c in (hue, saturation, value))
    (found,) = rgb_of(Image.new("HSV", (1, 1), pixel))
    assert np.abs(np.array(found) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"])
def test_every_mode_of_a_picture_in_memory(mode: str) -> None:
    source = Image.new("RGBA", (2, 2), (255, 255, 255, 255))
    if mode == "RGBX":
        source = source.convert("RGB")
    via = {"La": "LA", "PA": "P", "1": "L"}.get(mode)
    picture = (source.convert(via) if via else source).convert(mode)
    assert picture.mode == mode
    assert rgb_of(picture) == [WHITE] * 4


@pytest.mark.parametrize(
    ("array", "gray"),
    [
        (np.array([[0, 7, 255]], np.uint8), [0, 7, 255]),
        (np.array([[[0], [7], [255]]], np.uint8), [0, 7, 255]),
        (np.array([[0, 386, 65535]], np.uint16), [0, 2, 255]),
        (np.array([[0, 386, 65535]], ">u2"), [0, 2, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[[9, 0], [9, 255]]], np.uint8), [255, 9]),
        (np.array([[[386, 386, 386]]], np.uint16), [2]),
        (np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8), [255, 9]),
        (np.zeros((1, 4, 3), np.uint8)[:, ::2], [0, 0]),
    ],
)
def test_arrays(array: NDArray[Any], gray: list[int]) -> None:
    assert gray_of(array) == gray


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((2, 2)), "an array of float64; allowed are uint8 and uint16"),
        (np.zeros((3, 8, 8), np.uint8), r"of shape \(3, 8, 8\)"),
        (tiff(1, 1, [32], 1, bytes(4), more={339: [3]}), "floating-point"),
        (tiff(1, 1, [32], 1, struct.pack("<I", 70000)), "32-bit integer"),
        (tiff(1, 1, [16], 1, struct.pack("<h", -5), more={339: [2]}), "32-bit integer"),
        (3.5, "a float; a picture is a path"),
    ],
)
def test_what_has_no_known_range_is_bad(source: Any, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        read_picture(source)
