"""Small stores of pictures with gradients, edges and noise, in both formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Format, Record, Store, write_store
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe.schema import Recipe

PREPROCESS = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 64, 48)
SAMPLES = 53


def picture(number: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) with a shortest side of 64, different for every number."""
    draws = np.random.default_rng(number)
    sides = [64, int(draws.integers(64, 110))]
    height, width = sides if number % 2 else sides[::-1]
    y, x = np.mgrid[:height, :width] / 64
    waves = [np.sin(x * draws.uniform(1, 9) + y * draws.uniform(1, 9)) for _ in range(3)]
    pixels = 128 + 90 * np.stack(waves, axis=2) + draws.normal(0, 6, (height, width, 3))
    pixels[10:20, 15:40] = draws.integers(0, 256, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def records(count: int = SAMPLES) -> list[Record]:
    """Pictures 0 to ``count`` - 1, of seven classes."""
    return [lambda number=number: (picture(number), number % 7) for number in range(count)]


def recipe(**sections: dict[str, Any]) -> Recipe:
    """A recipe of global batches of 12 in micro-batches of 4."""
    train = {"global_batch": 12, "micro_batch": 4, **sections.pop("train", {})}
    data = {"name": "imagefolder", "num_workers": 2, **sections.pop("data", {})}
    return Recipe.model_validate({"name": "test", "data": data, "train": train, **sections})


def prepared(store: Path) -> Prepared:
    """A data set without validation split; training and test are the same pictures."""
    labels = Store(store).labels
    return Prepared(
        folder=store.parent,
        classes=[f"class{number}" for number in range(7)],
        fingerprint="",
        train_store=store,
        test_store=store,
        train_labels=labels,
        test_labels=labels,
        val_fraction=0.0,
        label_fraction=1.0,
        split_seed=0,
    )


def stored(folder: Path, format: Format = "jpg", count: int = SAMPLES) -> Prepared:
    """Pictures 0 to ``count`` - 1, written into the folder."""
    written = write_store(folder / "train", records(count), format=format, num_workers=2)
    return prepared(written.path)


@pytest.fixture(scope="session")
def jpg(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Pictures stored as JPEG."""
    return stored(tmp_path_factory.mktemp("jpg"), "jpg")


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Pictures stored as pixels."""
    return stored(tmp_path_factory.mktemp("raw"), "raw")


# Importing it takes two seconds of a core.
FFCV = pytest.param("ffcv", marks=pytest.mark.slow)


@pytest.fixture(params=["numba", FFCV, "torchvision", "nvjpeg"])
def kind(request: pytest.FixtureRequest) -> str:
    """Who decodes."""
    if request.param == "ffcv":
        needs_ffcv()
    if request.param == "nvjpeg":
        needs_torchcodec()
    return str(request.param)


def needs_ffcv() -> None:
    """Skip where FFCV is not installed (in CI that is a failure)."""
    pytest.importorskip("ffcv", reason="FFCV is not installed (README: Installing)")


def needs_torchcodec() -> None:
    """Skip where TorchCodec is not installed (in CI that is a failure)."""
    pytest.importorskip("torchcodec", reason="TorchCodec is not installed (make setup)")


def train_loader(
    prepared: Prepared,
    kind: str = "numba",
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
    before: str | None = None,
    **sections: dict[str, Any],
) -> TrainLoader:
    """A training loader that decodes as told; nvjpeg's code on the CPU, where training has none."""
    asked = "numba" if kind == "nvjpeg" else kind
    chosen = recipe(data={"loader": asked, "num_workers": workers}, **sections)
    device = torch.device("cpu")
    loader = TrainLoader(
        prepared,
        chosen,
        PREPROCESS,
        rank=rank,
        world_size=world_size,
        device=device,
        before=before,
    )
    if kind == "nvjpeg":
        decode_by_nvjpeg(loader)
    return loader


def decode_by_nvjpeg(loader: TrainLoader) -> None:
    """From now on nvjpeg's code decodes, on the CPU."""
    from adafilter_dist.data.loading.nvjpeg_backend import NvjpegBackend

    device = torch.device("cpu")
    loader._backend = NvjpegBackend(loader._store, PREPROCESS.crop, loader._workers, device)
    loader.kind = loader._backend.kind
