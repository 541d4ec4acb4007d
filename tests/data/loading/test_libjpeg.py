"""Parts of JPEGs are what Pillow decodes of the whole, to the bit, and damage is noticed."""

from __future__ import annotations

import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from adafilter_dist.data.loading.libjpeg import LIBRARY, close_decoder, decode_box, open_decoder

KINDS: list[dict[str, Any]] = [
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:2"},
    {"subsampling": "4:4:4"},
    {"subsampling": "4:2:0", "progressive": True},
    {"subsampling": "4:2:2", "progressive": True, "optimize": True},
    {"subsampling": "4:2:0", "restart_marker_rows": 1},
    {"subsampling": "4:4:4", "restart_marker_blocks": 3},
    {"mode": "L"},
]
# Of OpenCV's encoder: what Pillow does not write.
FACTORS = {"4:1:1": 0x411111, "4:4:0": 0x121111}


def pixels(draws: np.random.Generator) -> NDArray[np.uint8]:
    height, width = (int(side) for side in draws.integers(1, 180, 2))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * draws.uniform(0, 1) + y * draws.uniform(0, 1)) for _ in range(3)]
    noise = draws.normal(0, draws.uniform(0, 60), (height, width, 3))
    return (128 + 90 * np.stack(waves, axis=2) + noise).clip(0, 255).astype(np.uint8)


def jpeg(picture: NDArray[np.uint8], mode: str = "RGB", **options: Any) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def whole(encoded: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded)) as opened:
        return np.asarray(opened.convert("RGB"))


def part(
    encoded: bytes, size: tuple[int, int], box: tuple[int, int, int, int]
) -> NDArray[np.uint8] | None:
    """The box, decoded; None where the JPEG is damaged."""
    decoder = open_decoder(LIBRARY)
    data = np.frombuffer(encoded, np.uint8)
    decoded = np.full(3 * size[0] * size[1], 77, np.uint8)
    column, length = decode_box(LIBRARY, decoder, data, *size, np.array(box), decoded)
    close_decoder(LIBRARY, decoder)
    if column < 0:
        return None
    rows = decoded[: 3 * box[2] * length].reshape(box[2], length, 3)
    return rows[:, column : column + box[3]]


def compare_boxes(encoded: bytes, draws: np.random.Generator) -> None:
    picture = whole(encoded)
    size = picture.shape[0], picture.shape[1]
    for _ in range(8):
        height, width = (int(draws.integers(1, side + 1)) for side in size)
        top = int(draws.integers(0, size[0] - height + 1))
        left = int(draws.integers(0, size[1] - width + 1))
        found = part(encoded, size, (top, left, height, width))
        wanted = picture[top : top + height, left : left + width]
        assert found is not None and np.array_equal(found, wanted), (size, top, left, height, width)


@pytest.mark.parametrize("options", KINDS, ids=lambda one: " ".join(map(str, one.values())))
def test_a_box_is_what_pillow_decodes(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 20)  # noise outgrows Pillow's buffer
    draws = np.random.default_rng(1)
    for _ in range(50):
        quality = int(draws.choice([20, 75, 95, 100]))
        compare_boxes(jpeg(pixels(draws), quality=quality, **options), draws)


@pytest.mark.parametrize("name", FACTORS)
def test_a_box_of_other_subsamplings(name: str) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV (it comes with FFCV) is not installed")
    draws = np.random.default_rng(2)
    for trial in range(50):
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, FACTORS[name]]
        options += [
            cv2.IMWRITE_JPEG_PROGRESSIVE,
            trial % 2,
            cv2.IMWRITE_JPEG_RST_INTERVAL,
            trial % 5,
        ]
        compare_boxes(cv2.imencode(".jpg", pixels(draws), options)[1].tobytes(), draws)


def test_what_libjpeg_cannot_decode_is_refused() -> None:
    """It jumps out of its own code then; the decoder is good for the next picture afterwards."""
    picture = pixels(np.random.default_rng(3))
    size, box = picture.shape[:2], (0, 0, *picture.shape[:2])
    good = jpeg(picture)
    ink = jpeg(picture, "CMYK")
    middle = len(good) // 2
    for bad in (
        ink,
        b"\x89PNG" + good,
        good[:2],
        good[:20],
        good[:middle],
        good[:middle] + bytes(len(good) - middle),
    ):
        assert part(bad, size, box) is None
    assert part(good, (size[0] + 1, size[1]), box) is None
    decoder = open_decoder(LIBRARY)
    decoded = np.empty(3 * size[0] * size[1], np.uint8)
    for _ in range(100):
        for encoded, wanted in ((good[:20], -1), (ink, -1), (good, 0)):
            data = np.frombuffer(encoded, np.uint8)
            column, _ = decode_box(LIBRARY, decoder, data, *size, np.array(box), decoded)
            assert column == wanted
    close_decoder(LIBRARY, decoder)
    assert np.array_equal(decoded.reshape(picture.shape), whole(good))


def test_memory_stays_flat() -> None:
    """A decoder that is not freed keeps 2 KB, and a picture that is not given up its work space."""
    picture = pixels(np.random.default_rng(4))
    size, box = picture.shape[:2], (0, 0, 1, 1)
    encoded = [jpeg(picture), jpeg(picture, progressive=True), jpeg(picture)[:300]]

    def decode(times: int) -> int:
        for _ in range(times):
            for one in encoded:
                part(one, size, box)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = decode(100)
    assert decode(1500) - before < 4 << 20


def test_a_picture_does_not_use_the_tables_of_the_last() -> None:
    picture = pixels(np.random.default_rng(5))
    size = picture.shape[:2]
    lacking = bytearray(jpeg(picture))
    while (at := lacking.find(b"\xff\xc4")) >= 0:
        del lacking[at : at + 2 + int.from_bytes(lacking[at + 2 : at + 4])]
    decoder = open_decoder(LIBRARY)
    decoded = np.empty(3 * size[0] * size[1], np.uint8)
    for encoded in (jpeg(picture, optimize=True), bytes(lacking)):
        data = np.frombuffer(encoded, np.uint8)
        decode_box(LIBRARY, decoder, data, *size, np.array((0, 0, *size)), decoded)
    close_decoder(LIBRARY, decoder)
    assert np.array_equal(decoded.reshape(picture.shape), whole(bytes(lacking)))
