"""Compiled code reads pictures for evaluation with Pillow's pixels, to the bit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from adafilter_dist.data.loading.choose import choose_reader
from adafilter_dist.data.loading.evaluation_decoder import EvaluationDecoder
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store, write_store
from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.preprocess import Preprocess, evaluation_pixels
from tests.data.conftest import PREPROCESS, SAMPLES, picture, recipe


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Pictures of many shapes: narrow, square, of odd sides; as JPEG and as pixels."""
    draws = np.random.default_rng(5)
    records = []
    for number in range(24):
        height, width = (int(side) for side in draws.integers(34, 130, 2))
        pixels = np.ascontiguousarray(np.tile(picture(number), (3, 3, 1))[:height, :width])
        records.append(lambda pixels=pixels: (pixels, 0))
    folder = tmp_path_factory.mktemp("odd")
    formats: tuple[Literal["jpg", "raw"], ...] = ("jpg", "raw")
    return {
        format: Store(write_store(folder / format, records, format=format).path)
        for format in formats
    }


@pytest.mark.parametrize("format", ["jpg", "raw"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "crop"), [(64, 48), (33, 32), (34, 34), (20, 7), (97, 90), (150, 101), (40, 60)]
)
def test_pixels_of_pillow(
    format: str,
    interpolation: Literal["bilinear", "bicubic"],
    resize: int,
    crop: int,
    odd: dict[str, Store],
) -> None:
    store = odd[format]
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, interpolation, resize, crop)
    decoder = EvaluationDecoder(store, preprocess)
    for record in range(len(store)):
        wanted = evaluation_pixels(Image.fromarray(store.read(record)), preprocess)
        for _ in range(2):  # the first of its size is read by Pillow, too
            assert np.array_equal(decoder.read(record), wanted), record
    # All but tall pictures, in some versions of Pillow; none where the crop has a margin.
    equal = [equal for (height, width), equal in decoder._equals_pillow.items() if height <= width]
    assert len(equal) > 8 and set(equal) == {resize >= crop}


def batches(data: Prepared, loader: str) -> torch.Tensor:
    chosen = recipe(data={"loader": loader})
    place = {"rank": 0, "world_size": 1, "batch_size": 8}
    loaded = EvalLoader(data, "test", chosen, PREPROCESS, **place)
    pixels = torch.cat([batch.images for _ in range(2) for batch in loaded])
    decoder = getattr(loaded._read, "__self__", None)
    assert isinstance(decoder, EvaluationDecoder) == (loader != "torchvision")
    assert decoder is None or any(decoder._equals_pillow.values())
    return pixels


def test_a_split_is_the_same_by_both(jpg: Prepared) -> None:
    found = batches(jpg, "auto")
    assert len(found) == 2 * SAMPLES
    assert torch.equal(found, batches(jpg, "torchvision"))


def test_pillow_reads_where_it_rounds_otherwise(
    jpg: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def darker(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
        return evaluation_pixels(image, preprocess) // 2

    name = "adafilter_dist.data.loading.evaluation_decoder.evaluation_pixels"
    monkeypatch.setattr(name, darker)
    store = Store(jpg.test_store)
    decoder = EvaluationDecoder(store, PREPROCESS)
    for record in (3, 3, 4):
        wanted = darker(Image.fromarray(store.read(record)), PREPROCESS)
        assert np.array_equal(decoder.read(record), wanted)


def test_few_pictures_are_not_worth_an_import(
    jpg: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(jpg.test_store)
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    for count, compiled in ((999, False), (1000, True)):
        read = choose_reader(recipe(), store, count, PREPROCESS)
        assert isinstance(getattr(read, "__self__", None), EvaluationDecoder) == compiled


@pytest.mark.parametrize("its_size_is_known", [False, True])
def test_damage_inside_a_picture_is_named(
    its_size_is_known: bool, jpg: Prepared, tmp_path: Path
) -> None:
    content = bytearray(jpg.test_store.read_bytes())
    offset, size, *sides = Store(jpg.test_store).index[17, :4].tolist()
    content[offset + size // 3 : offset + size // 3 + 2] = b"\xff\xd9"  # it ends too early
    path = tmp_path / "test.beton"
    path.write_bytes(content)
    place = {"rank": 0, "world_size": 1, "batch_size": 8}
    loader = EvalLoader(replace(jpg, test_store=path), "test", recipe(), PREPROCESS, **place)
    decoder = EvaluationDecoder(loader._store, PREPROCESS)
    decoder._equals_pillow |= {tuple(sides): True} if its_size_is_known else {}
    loader._read = decoder.read
    with pytest.raises(UserError, match="record 17 cannot be decoded"):
        list(loader)
