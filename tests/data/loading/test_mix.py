from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.loading.mix import erase, mix
from adafilter_dist.recipe.sections.data import Augment

M, SIDE, CLASSES = 6, 16, 5
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
INDEX = torch.arange(100, 100 + M)


def images() -> Tensor:
    """Image k is k + 1 everywhere."""
    return torch.arange(1.0, M + 1).view(M, 1, 1, 1).expand(M, 3, SIDE, SIDE).clone()


def mixed(step: int = 0, micro_batch: int = 0, **augment: Any) -> tuple[Tensor, Tensor]:
    place = {"seed": 1, "epoch": 2, "step": step, "micro_batch": micro_batch}
    return mix(images(), LABELS, INDEX, Augment(**augment), num_classes=CLASSES, **place)


def test_nothing_asked_nothing_done() -> None:
    found, targets = mixed()
    assert torch.equal(found, images()) and torch.equal(targets, LABELS)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_say_what_is_in_the_image(kind: str) -> None:
    shares = []
    for step in range(40):
        found, targets = mixed(step, **{kind: 1.0})
        assert torch.allclose(targets.sum(1), torch.ones(M))
        values = [found[k].unique().tolist() for k in range(M)]
        for k in range(M):
            mean = found[k].mean()
            others = [j for j in range(M) if j != k]
            # The image is a blend of itself and exactly one partner, which the targets name.
            fits = []
            for j in [*others, k]:
                share = 1.0 if j == k else float((mean - (j + 1)) / (k - j))
                if not -1e-4 <= share <= 1 + 1e-4:
                    continue
                one_hot = functional.one_hot(LABELS, CLASSES).float()
                wanted = share * one_hot[k] + (1 - share) * one_hot[j]
                fits.append(torch.allclose(wanted, targets[k], atol=1e-4))
            assert any(fits)
            if kind == "cutmix":
                assert set(values[k]) <= set(range(1, M + 1)) and len(values[k]) <= 2
        shares.append(float(targets.max(1).values.min()))
    assert np.std(shares) > 0.05


def test_mixing_depends_on_step_and_micro_batch() -> None:
    first = mixed(3, 1, mixup=1.0)[0]
    assert torch.equal(first, mixed(3, 1, mixup=1.0)[0])
    assert not torch.equal(first, mixed(3, 2, mixup=1.0)[0])
    assert not torch.equal(first, mixed(4, 1, mixup=1.0)[0])
    assert not torch.equal(mixed(1, 3, mixup=1.0)[0], first)


def test_both_on_takes_turns() -> None:
    cuts = [bool((mixed(step, mixup=1.0, cutmix=1.0)[0] % 1 == 0).all()) for step in range(60)]
    assert 15 < sum(cuts) < 45


def test_erasing_depends_on_the_sample_alone() -> None:
    whole = erase(images(), INDEX, 0.5, seed=1, epoch=2)
    for k in range(M):
        alone = erase(images()[k : k + 1], INDEX[k : k + 1], 0.5, seed=1, epoch=2)
        assert torch.equal(alone[0], whole[k])
    assert not torch.equal(erase(images(), INDEX, 0.5, seed=1, epoch=3), whole)


def test_erased_share_and_area() -> None:
    many = torch.ones(2000, 1, 32, 32)
    found = erase(many, torch.arange(2000), 0.25, seed=0, epoch=0)
    areas = 1 - found.mean(dim=(1, 2, 3))
    erased = areas > 0
    assert abs(float(erased.double().mean()) - 0.25) < 0.04  # four standard errors
    assert areas[erased].min() > 0.005 and areas[erased].max() < 0.36
    assert abs(float(areas[erased].mean()) - 0.175) < 0.02
    assert (many == 1).all()
