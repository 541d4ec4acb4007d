from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import to_device
from tests.data.conftest import PREPROCESS

CPU = torch.device("cpu")


def batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 9, 9, 3), dtype=torch.uint8, generator=generator)
    return MicroBatch(pixels.permute(0, 3, 1, 2), torch.arange(4), torch.arange(4))


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_normalised_as_torchvision_does(dtype: torch.dtype, error: float) -> None:
    images, labels = to_device(batch(), PREPROCESS, CPU, dtype)
    exact = v2.functional.to_dtype(batch().images, torch.float64, scale=True)
    wanted = v2.functional.normalize(exact, list(PREPROCESS.mean), list(PREPROCESS.std))
    assert images.dtype == dtype
    assert (images.double() - wanted).abs().max() < error
    assert torch.equal(labels, torch.arange(4))


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(channels_last: bool) -> None:
    images, _ = to_device(batch(), PREPROCESS, CPU, torch.float32, channels_last)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.is_contiguous() != channels_last


def test_the_batch_is_left_as_it_was() -> None:
    before, given = batch(), batch()
    to_device(given, PREPROCESS, CPU)
    assert torch.equal(given.images, before.images)
