"""How far apart a decision sets pictures: of all pairs, and on pictures it was not fitted to."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating.decision_contrast import (
    FOLDS,
    contrast,
    cross_validated_contrast,
)
from adafilter_dist.models.gating.picture_decision import PictureDecision, fit_decision

BITS = torch.tensor([[0.0], [1.0]])


def noise(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("choices", [2, 4])
def test_it_is_what_pairs_would_lose_by_exchanging_their_choices(choices: int) -> None:
    losses = noise(9, choices)
    chosen = torch.arange(9) ** 2 % choices
    lost = [
        losses[a, chosen[b]] + losses[b, chosen[a]] - losses[a, chosen[a]] - losses[b, chosen[b]]
        for a, b in itertools.combinations(range(9), 2)
        if chosen[a] != chosen[b]
    ]
    assert contrast(losses, chosen) == pytest.approx(float(torch.stack(lost).mean()))
    assert contrast(losses, torch.ones(9, dtype=torch.int64)) == 0


def test_pictures_of_two_kinds_are_apart_also_where_they_were_not_fitted() -> None:
    kind = torch.arange(40) // FOLDS % 2
    features = noise(40, 3)
    features[:, 0] += 10 * kind
    # The first kind loses 0.8 by fine-tuned filters, the second gains 2.
    losses = torch.stack([torch.where(kind == 0, 0.2, 3.0), torch.ones(40)], 1).double()
    assert cross_validated_contrast(features, losses, BITS, lean=0.1, ridge=1e-4) == pytest.approx(
        2.8
    )


def test_what_is_fitted_to_noise_is_not_apart() -> None:
    """With many features and few pictures the fit divides those that it was fitted to."""
    features, losses = noise(40, 200), 1 + 0.5 * noise(40, 2, seed=4)
    fitted = PictureDecision(200, 1, dtype=torch.float64)
    fitted.decide(fit_decision(features, losses, BITS, lean=0.0, ridge=1e-5), 4.0)
    assert contrast(losses, fitted.choice(features)) > 1
    assert cross_validated_contrast(features, losses, BITS, lean=0.0, ridge=1e-5) < 0.3
