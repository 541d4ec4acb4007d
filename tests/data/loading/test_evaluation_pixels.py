"""The evaluation pipeline is the weights' own transform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import (
    EfficientNet_B0_Weights,
    MobileNet_V3_Large_Weights,
    ResNet50_Weights,
    WeightsEnum,
)

from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.prepare.read_pictures import stored_pixels
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store, write_store
from adafilter_dist.models.backbone.preprocess import Preprocess
from tests.data.conftest import recipe
from tests.shared.real_pictures import photographs

WEIGHTS = [
    ResNet50_Weights.IMAGENET1K_V1,  # bilinear, 256 to 224: as large as it is stored
    ResNet50_Weights.IMAGENET1K_V2,  # 232 to 224
    MobileNet_V3_Large_Weights.IMAGENET1K_V2,
    EfficientNet_B0_Weights.IMAGENET1K_V1,  # bicubic
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, jpg: Prepared) -> Prepared:
    """Twenty real photographs as `prepare` stores them."""
    paths = photographs()
    assert len(paths) == 20
    written = write_store(
        tmp_path_factory.mktemp("photos") / "test",
        [lambda path=path: (stored_pixels(path.read_bytes(), 256), 0) for path in paths],
        num_workers=2,
    )
    return replace(jpg, test_store=written.path, test_labels=written.labels)


def preprocess_of(weights: WeightsEnum) -> Preprocess:
    preset = weights.transforms()
    return Preprocess(
        tuple(preset.mean),
        tuple(preset.std),
        preset.interpolation.value,
        preset.resize_size[0],
        preset.crop_size[0],
    )


def ours(photos: Prepared, weights: WeightsEnum) -> Tensor:
    """float32 (20, 3, crop, crop)."""
    preprocess = preprocess_of(weights)
    settings = {"rank": 0, "world_size": 1, "batch_size": 7}
    loader = EvalLoader(photos, "test", recipe(), preprocess, **settings)
    cpu = torch.device("cpu")
    return torch.cat([to_device(batch, preprocess, cpu)[0] for batch in loader])


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_equal_to_the_weights_own_transform(photos: Prepared, weights: WeightsEnum) -> None:
    store, preset = Store(photos.test_store), weights.transforms()
    for number, image in enumerate(ours(photos, weights)):
        stored = Image.fromarray(store.read(number))
        assert (image - preset(stored)).abs().max() < 2e-6


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_near_the_transform_of_the_original_file(photos: Prepared, weights: WeightsEnum) -> None:
    """Storing costs a second resize and a JPEG: about three grey levels, no shift, no tint."""
    preset = weights.transforms()
    found = ours(photos, weights)
    std = torch.tensor(preset.std).view(3, 1, 1) * 255
    differences = []
    for path, image in zip(photographs(), found, strict=True):
        with Image.open(path) as picture:
            differences.append((image - preset(picture.convert("RGB"))) * std)
    grey_levels = torch.stack(differences)
    assert grey_levels.abs().mean() < 3
    assert grey_levels.mean(dim=(0, 2, 3)).abs().max() < 0.5


def test_a_smaller_resize_than_stored_is_taken_from_what_is_stored(photos: Prepared) -> None:
    small = replace(preprocess_of(WEIGHTS[0]), resize=64, crop=56)
    settings = {"rank": 0, "world_size": 1, "batch_size": 20}
    (batch,) = EvalLoader(photos, "test", recipe(), small, **settings)
    assert batch.images.shape == (20, 3, 56, 56)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    first = Image.fromarray(Store(photos.test_store).read(0))
    assert min(first.size) == 256
    side = [length * 64 // 256 for length in first.size]
    by_pillow = np.asarray(first.resize(side, Image.Resampling.BILINEAR))
    top, left = (round((length - 56) / 2) for length in by_pillow.shape[:2])
    cropped = by_pillow[top : top + 56, left : left + 56]
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), cropped)


def test_nothing_but_the_crop_where_sizes_agree(photos: Prepared, tmp_path: Path) -> None:
    plain = replace(preprocess_of(WEIGHTS[0]), resize=256, crop=256)
    settings = {"rank": 0, "world_size": 1, "batch_size": 20}
    (batch,) = EvalLoader(photos, "test", recipe(), plain, **settings)
    store = Store(photos.test_store)
    for number, image in enumerate(batch.images):
        stored = store.read(number)
        top, left = (round((length - 256) / 2) for length in stored.shape[:2])
        cropped = stored[top : top + 256, left : left + 256]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), cropped)
