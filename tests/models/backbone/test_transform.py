"""The transform of an export against `prepare` and evaluation, picture by picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.backbones import resolve_preprocess
from adafilter_dist.models.backbone.preprocess import evaluation_transform
from adafilter_dist.recipe import Recipe
from tests.pictures.odd_pictures import encoded, odd_pictures, photograph

STORED = 64


@dataclass
class Evaluated:
    """What evaluation gives the network of each file of the test split."""

    recipe: Recipe
    inputs: dict[Path, Tensor]

    @property
    def transform(self):  # type: ignore[no-untyped-def]
        return evaluation_transform(resolve_preprocess(self.recipe))


def evaluated(root: Path, stored_format: str) -> Evaluated:
    data = {"name": "imagefolder", "root": root, "stored_size": STORED, "num_workers": 1}
    sizes = {"resolution": 48, "eval_resize": 56, "stored_format": stored_format}
    recipe = Recipe.model_validate(
        {"name": "odd", "data": data | sizes, "model": {"name": "resnet18", "weights": None}}
    )
    prepared = prepare(recipe, Console(file=io.StringIO()))
    preprocess = resolve_preprocess(recipe)
    loader = EvalLoader(prepared, "test", recipe, preprocess, rank=0, world_size=1, batch_size=8)
    inputs = torch.cat([to_device(batch, preprocess, torch.device("cpu"))[0] for batch in loader])
    files = [root / row["path"] for row in read_list(prepared.folder / "test.csv")]
    return Evaluated(recipe, dict(zip(files, inputs, strict=True)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    plain = encoded(photograph(), "PNG")
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "plain.png").write_bytes(plain)
    for name, content in odd_pictures():
        (root / "test" / "a" / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def raw(root: Path) -> Evaluated:
    return evaluated(root, "raw")


def test_every_file_is_transformed_as_it_is_evaluated(raw: Evaluated) -> None:
    assert len(raw.inputs) == 21
    transform = raw.transform
    for path, expected in raw.inputs.items():
        with Image.open(path) as opened:
            for source in (path, str(path), path.read_bytes(), opened):
                assert (transform(source) - expected).abs().max() < 2e-6, (path.name, type(source))


def test_a_loaded_picture_differs_where_prepare_has_decoded_it_smaller(raw: Evaluated) -> None:
    transform = raw.transform
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
    for path, expected in raw.inputs.items():
        with Image.open(path) as opened:
            opened.load()
            levels = ((transform(opened) - expected) * std).abs()
        if path.name == "large.jpg":
            assert 0 < levels.mean() < 2
        else:
            assert levels.max() < 1e-3, path.name


def test_a_picture_is_left_as_it_was(raw: Evaluated) -> None:
    for path in raw.inputs:
        with Image.open(path) as opened, Image.open(path) as other:
            raw.transform(opened)
            assert np.array_equal(np.asarray(opened), np.asarray(other))
            assert (opened.size, opened.mode, opened.info) == (other.size, other.mode, other.info)


def test_storing_as_jpeg_costs_little(root: Path, tmp_path: Path, raw: Evaluated) -> None:
    jpg = evaluated(root, "jpg")
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
    levels = torch.stack([(jpg.inputs[p] - raw.inputs[p]) * std for p in raw.inputs]).abs()
    assert 0 < levels.mean() < 3


def test_what_prepare_refuses_the_transform_refuses(raw: Evaluated, tmp_path: Path) -> None:
    transform = raw.transform
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encoded(photograph(), "JPEG")[:2000])
    strip = Image.new("RGB", (60, 1))
    for source, message in (
        (cut, rf"^{cut} cannot be used: image file is truncated"),
        (tmp_path / "none.png", r"none.png cannot be used: no such file$"),
        (strip, r"^the picture cannot be used: 60x1 px: more than 50 times"),
        (torch.zeros(3, 8, 8), r"a Tensor; a picture is a path"),
    ):
        with pytest.raises(UserError, match=message):
            transform(source)
    with Image.open(cut) as opened, pytest.raises(UserError, match=f"^{cut} cannot be used"):
        transform(opened)
