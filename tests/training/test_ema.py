"""The moving average: of parameters only, swapped in and out to the bit."""

from __future__ import annotations

import torch
from torch import nn

from adafilter_dist.engine.base import Replicated
from adafilter_dist.training.ema import ModelEma


class Whole(Replicated):
    """An engine as far as the average needs one: every rank holds the network whole."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def test_follows_the_formula_and_swaps_back_to_the_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    ema = ModelEma(Whole(model), decay=0.75)
    wanted = model[0].weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(3, 3))
        ema.update()
        wanted = 0.75 * wanted + 0.25 * model[0].weight.detach()
    live = model[0].weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(model[0].weight.detach(), wanted)
    assert torch.equal(model[0].weight.detach(), live)
    assert set(ema.state()) == {"0.weight", "1.weight", "1.bias"}  # no buffer, nothing frozen


def test_state_round_trip() -> None:
    model = nn.Linear(2, 2)
    ema = ModelEma(Whole(model), decay=0.5)
    with torch.no_grad():
        model.weight.zero_()
    ema.update()
    kept = {name: tensor.clone() for name, tensor in ema.state().items()}
    other = ModelEma(Whole(model), decay=0.5)
    other.load(kept)
    assert all(torch.equal(other.state()[name], kept[name]) for name in kept)


def test_an_average_that_is_only_begun_now_begins_at_the_parameters() -> None:
    model = nn.Linear(2, 2)
    ema = ModelEma(Whole(model), decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)  # as a checkpoint without an average is loaded
    ema.load({})
    assert torch.equal(ema.state()["weight"], model.weight.detach())
