"""Draws in the model depend on the key alone and leave no trace."""

from __future__ import annotations

import torch

from adafilter_dist.training.seeding import seeded_draws

CPU = torch.device("cpu")


def drawn(seed: int, step: int, micro_batch: int) -> torch.Tensor:
    with seeded_draws(seed, step, [micro_batch], CPU):
        return torch.rand(8)


def test_a_function_of_seed_step_and_micro_batch() -> None:
    torch.manual_seed(1)
    first = drawn(0, 3, 1)
    torch.manual_seed(2)
    assert torch.equal(drawn(0, 3, 1), first)
    for other in (drawn(1, 3, 1), drawn(0, 4, 1), drawn(0, 3, 2), drawn(0, 1, 3)):
        assert not torch.equal(other, first)


def test_the_generators_are_put_back() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    drawn(0, 0, 0)
    assert torch.equal(torch.rand(3), wanted)


def test_nothing_is_kept_for_a_gpu_that_is_not_there() -> None:
    """torch.manual_seed does so, with a traceback each time: milliseconds, and memory, a step."""
    before = len(torch.cuda._queued_calls)
    drawn(0, 0, 0)
    assert len(torch.cuda._queued_calls) == before
