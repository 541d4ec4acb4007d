from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL.Image import Image, fromarray
from torch import Tensor
from torchvision.transforms import v2

from adafilter_dist.data.loading import policy as policies
from adafilter_dist.data.loading.policy import Policy, policy_of
from adafilter_dist.recipe.sections.data import Augment
from tests.data.conftest import picture


def images(count: int = 12) -> Tensor:
    """uint8 (count, 3, 48, 48), channels last."""
    pixels = np.stack([picture(k)[:48, :48] for k in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def make(name: str, seed: int = 0) -> Policy:
    found = policy_of(Augment(policy=name), seed)
    assert found is not None
    return found


def test_none() -> None:
    assert policy_of(Augment(), 0) is None


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_a_picture_depends_on_seed_epoch_and_sample_alone(name: str) -> None:
    index = np.arange(12)
    found = make(name)(images(), index, 3)
    assert found.dtype == torch.uint8 and found.shape == images().shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    for k in range(12):
        assert torch.equal(make(name)(images()[k : k + 1], index[k : k + 1], 3)[0], found[k])
    for other in (
        make(name)(images(), index, 4),
        make(name, 1)(images(), index, 3),
        make(name)(images(), index + 12, 3),
    ):
        assert not torch.equal(other, found)


def test_trivialaugment_draws_every_operation_and_magnitude_alike() -> None:
    calls: list[tuple[int, float]] = []

    def spy(which: int) -> policies._Operation:
        def apply(image: Image, magnitude: float) -> Image:
            calls.append((which, magnitude))
            return image

        return policies._Operation(apply, signed=True)

    policy = Policy(0, tuple(spy(which) for which in range(14)), 1, None)
    policy(torch.zeros(6000, 3, 2, 2, dtype=torch.uint8), np.arange(6000), 0)
    counts = np.bincount([which for which, _ in calls], minlength=14) / 6000
    assert np.abs(counts - 1 / 14).max() < 0.014  # four standard errors
    strengths = np.array([magnitude for _, magnitude in calls])
    assert len(np.unique(np.abs(strengths).round(9))) == 31
    assert abs(strengths.mean()) < 0.03 and abs(np.abs(strengths).mean() - 0.5) < 0.02


def test_randaugment_applies_as_many_as_asked_at_the_magnitude_asked() -> None:
    found = policy_of(Augment(policy="randaugment", randaugment_ops=3, randaugment_magnitude=0), 0)
    assert found is not None and found.count == 3
    # At magnitude 0 only the operations without a magnitude change anything.
    silent = Policy(0, policies._RANDAUGMENT[:12], 3, 0)
    assert torch.equal(silent(images(), np.arange(12), 0), images())


@pytest.mark.parametrize("name", ["_RANDAUGMENT", "_TRIVIALAUGMENT"])
def test_the_table_goes_as_far_as_torchvisions(name: str) -> None:
    """Each operation at full strength does what torchvision's reference does at full strength."""
    reference = {
        "_RANDAUGMENT": v2.RandAugment(num_magnitude_bins=31),
        "_TRIVIALAUGMENT": v2.TrivialAugmentWide(num_magnitude_bins=31),
    }[name]
    theirs = [
        *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness"),
        *("Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
    ]
    image = fromarray(picture(3)[:48, :48])
    operations = getattr(policies, name)
    assert set(reference._AUGMENTATION_SPACE) == set(theirs)
    for operation, word in zip(operations, theirs, strict=True):
        magnitudes, signed = reference._AUGMENTATION_SPACE[word]
        most = magnitudes(31, 48, 48)
        assert operation.signed == signed
        for strength in (1.0, 0.4, -1.0)[: 3 if signed else 2]:
            bins = 0.0 if most is None else float(most[round(abs(strength) * 30)])
            wanted = reference._apply_image_or_video_transform(
                image,
                word,
                float(np.copysign(bins, strength)),
                interpolation=v2.InterpolationMode.NEAREST,
                fill={},
            )
            found = operation.apply(image, operation.magnitude(strength, 48))
            # Theirs rounds magnitudes to float32, which can tip a pixel.
            difference = np.asarray(found).astype(int) - np.asarray(wanted)
            assert np.abs(difference).max() <= 1, (word, strength)
