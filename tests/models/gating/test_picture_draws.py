"""Draws keyed by a picture."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.models.gating.picture_draws import uniform_of_pictures


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_picture_has_its_numbers_in_any_batch_and_layout(dtype: torch.dtype) -> None:
    pictures = torch.randn(6, 3, 8, 9).to(dtype)
    whole = uniform_of_pictures(pictures, 5, seed=3)
    order = torch.randperm(6)
    assert torch.equal(uniform_of_pictures(pictures[order], 5, seed=3), whole[order])
    assert torch.equal(uniform_of_pictures(pictures[2:3], 5, seed=3), whole[2:3])
    last = pictures.to(memory_format=torch.channels_last)
    assert torch.equal(uniform_of_pictures(last, 5, seed=3), whole)
    assert torch.equal(uniform_of_pictures(pictures, 3, seed=3), whole[:, :3])


def test_they_are_uniform_and_independent_of_each_other() -> None:
    pictures = torch.zeros(4000, 1, 2, 2)
    pictures[:, 0, 0, 0] = torch.arange(4000) / 4000  # pictures that are nearly the same
    drawn = uniform_of_pictures(pictures, 4, seed=0)
    assert drawn.min() > 0 and drawn.max() < 1
    counts = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (counts - 0.05).abs().max() < 5 * (0.05 * 0.95 / drawn.numel()) ** 0.5
    related = torch.corrcoef(torch.cat((drawn, drawn.roll(1, 0)), 1).T) - torch.eye(8)
    assert related.abs().max() < 5 / 4000**0.5
    other = uniform_of_pictures(pictures, 4, seed=1)
    assert torch.corrcoef(torch.stack((drawn.flatten(), other.flatten())))[0, 1].abs() < 0.05


def test_splitmix64_as_published() -> None:
    """The first outputs for seed 1234567, of the reference implementation in C."""
    from adafilter_dist.models.gating import picture_draws

    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = 1234567 + torch.arange(1, 4) * picture_draws._STEP
    assert [int(z) % 2**64 for z in picture_draws._mixed(states)] == wanted
