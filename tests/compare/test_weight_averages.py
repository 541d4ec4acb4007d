"""Averages of weights against their formulas, on the small network of the package."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from adafilter_dist.compare.weight_averages import (
    greedy_soup,
    interpolate,
    uniform_soup,
    wise_ft,
)
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.recipe.schema import Recipe

State = dict[str, Tensor]


def states(number: int) -> list[State]:
    """The pre-trained network, and others near it, their running statistics included."""
    values: dict[str, Any] = {
        "name": "t",
        "data": {"name": "mixed_domains"},
        "model": {"name": "small_resnet"},
        "method": {"name": "finetune"},
    }
    recipe = Recipe.model_validate(values)
    start = build_method(load_backbone(recipe, 10), recipe).model.state_dict()
    draw = torch.Generator().manual_seed(1)
    near = [start]
    for _ in range(number - 1):
        near.append(
            {
                name: value + 0.1 * torch.rand(value.shape, generator=draw)
                if value.is_floating_point()
                else value + len(near)
                for name, value in start.items()
            }
        )
    return near


def test_an_interpolation_is_the_weighted_mean_of_every_tensor() -> None:
    start, tuned = states(2)
    kept = [name for name in tuned if name.startswith("head.")]
    mixed = interpolate(start, tuned, 0.3, kept)
    assert list(mixed) == list(tuned) and kept
    for name, value in mixed.items():
        if name in kept or not value.is_floating_point():
            assert torch.equal(value, tuned[name])
        else:
            wanted = 0.7 * start[name].double() + 0.3 * tuned[name].double()
            assert torch.equal(value, wanted.float()), name
    assert any("running_var" in name for name in mixed)
    ends = [interpolate(start, tuned, share) for share in (0.0, 1.0)]
    floats = [name for name, value in tuned.items() if value.is_floating_point()]
    for name in floats:
        assert torch.equal(ends[0][name], start[name]) and torch.equal(ends[1][name], tuned[name])


def test_wise_ft_takes_the_share_that_validation_likes_best() -> None:
    start, tuned = states(2)
    name = next(iter(start))

    def accuracy(state: State) -> float:
        # The best of a curve with its top at 0.4.
        share = float(((state[name] - start[name]) / (tuned[name] - start[name])).median())
        return 1 - abs(round(share, 3) - 0.4)

    found = wise_ft(start, tuned, accuracy)
    assert found.share == 0.4 and len(found.accuracies) == 11
    assert torch.equal(found.state[name], interpolate(start, tuned, 0.4)[name])
    # Where nothing speaks for the pre-trained weights, it is fine-tuning.
    assert wise_ft(start, tuned, lambda state: 0.5).share == 1.0


def test_a_uniform_soup_is_the_mean() -> None:
    near = states(3)
    soup = uniform_soup(near, lambda state: 0.25)
    assert soup.members == (0, 1, 2) and soup.accuracy == 0.25
    for name, value in soup.state.items():
        if value.is_floating_point():
            wanted = torch.stack([state[name].double() for state in near]).mean(0)
            assert torch.allclose(value.double(), wanted, rtol=1e-6, atol=1e-7)


def test_a_greedy_soup_against_a_plain_search() -> None:
    near = states(5)
    name = next(n for n, value in near[0].items() if value.is_floating_point())
    target = near[1][name] * 0.5 + near[3][name] * 0.5

    def accuracy(state: State) -> float:
        return 1 / (1 + float((state[name] - target).abs().mean()))

    alone = [accuracy(state) for state in near]
    soup = greedy_soup(near, alone, accuracy)
    # By the recipe's words: in the order of accuracy, kept where the mean is not worse.
    members: list[int] = []
    for index in sorted(range(5), key=lambda i: -alone[i]):
        tried = [*members, index]
        mean = torch.stack([near[i][name].double() for i in tried]).mean(0).float()
        before = accuracy({name: _mean(near, members, name)}) if members else -1.0
        if accuracy({name: mean}) >= before:
            members = tried
    assert soup.members == tuple(members) and 1 < len(members) < 5
    assert soup.accuracy == pytest.approx(accuracy(soup.state)) and soup.accuracy >= max(alone)
    for subset in itertools.combinations(range(5), len(members)):
        if sorted(subset) != sorted(members):
            assert not torch.equal(soup.state[name], _mean(near, list(subset), name))


def _mean(near: list[State], members: list[int], name: str) -> Tensor:
    return torch.stack([near[i][name].double() for i in members]).mean(0).float()


def test_one_that_lowers_validation_stays_out_one_that_does_not_matter_goes_in() -> None:
    near = states(3)
    accuracies = iter([0.6, 0.8])  # of the best with the second, then with the third

    soup = greedy_soup(near, [0.7, 0.8, 0.75], lambda state: next(accuracies))
    assert soup.members == (1, 0) and soup.accuracy == 0.8


def test_a_weight_of_nothing_is_nothing_even_of_what_is_not_finite() -> None:
    start, tuned = states(2)
    broken = {
        name: value * torch.nan if value.is_floating_point() else value
        for name, value in start.items()
    }
    mixed = interpolate(broken, tuned, 1.0)
    assert all(torch.equal(mixed[name], tuned[name]) for name in tuned)


def test_other_networks_are_refused() -> None:
    start, tuned = states(2)
    name = next(iter(tuned))
    with pytest.raises(ValueError, match=f"another shape|{name}"):
        interpolate(start, {**tuned, name: tuned[name].flatten()}, 0.5)
    with pytest.raises(ValueError, match="only one of them has extra"):
        uniform_soup([start, {**tuned, "extra": tuned[name]}], lambda state: 0.0)
