from __future__ import annotations

import numpy as np
import pytest

from adafilter_dist.data.loading.keyed import Purpose, permutation, uniforms
from adafilter_dist.data.loading.order import (
    batch_share,
    epoch_order,
    micro_batches_of_rank,
    rank_order,
    steps_per_epoch,
)
from adafilter_dist.errors import UserError

N, B, M = 103, 24, 4


def whole(epoch: int, world_size: int, first_step: int = 0) -> np.ndarray:
    """(steps, B): what all ranks read together, step by step."""
    ranks = [rank_order(5, epoch, N, B, M, r, world_size, first_step) for r in range(world_size)]
    return np.concatenate(ranks, axis=1).reshape(-1, B)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6])
def test_every_world_size_reads_the_same_micro_batches(world_size: int) -> None:
    assert np.array_equal(whole(3, world_size), epoch_order(5, 3, N)[: N // B * B].reshape(-1, B))


def test_shares_are_uneven_by_one_at_most() -> None:
    for micro_batches in range(1, 20):
        for world_size in range(1, micro_batches + 1):
            shares = [
                micro_batches_of_rank(micro_batches, rank, world_size) for rank in range(world_size)
            ]
            assert [m for mine in shares for m in mine] == list(range(micro_batches))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_many_ranks() -> None:
    with pytest.raises(ValueError, match="rank 0 of 7, for 6 micro-batches"):
        rank_order(0, 0, N, B, M, 0, 7, 0)


def test_resuming_reads_the_tail() -> None:
    for first_step in range(N // B + 1):
        assert np.array_equal(whole(2, 3, first_step), whole(2, 1)[first_step:])


def test_each_epoch_is_another_permutation_that_drops_another_tail() -> None:
    orders = [epoch_order(5, epoch, N) for epoch in range(4)]
    assert all(np.array_equal(np.sort(order), np.arange(N)) for order in orders)
    tails = {tuple(sorted(order[N // B * B :])) for order in orders}
    assert len(tails) == 4


def test_seed_and_epoch_are_not_added() -> None:
    streams = [
        tuple(permutation(Purpose.ORDER, seed, epoch, count=N))
        for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1)
        for epoch in (0, 1, 2)
    ]
    assert len(set(streams)) == len(streams)


def test_the_order_is_what_it_was() -> None:
    """Runs of an earlier release must find the same order when they are resumed."""
    assert epoch_order(0, 0, 12).tolist() == [2, 0, 1, 11, 4, 5, 6, 7, 8, 10, 3, 9]
    found = uniforms(Purpose.CROP, 7, 1, np.array([0, 5]), 2)
    assert found[0].tolist() == [0.7047703169691628, 0.7870771365915652]
    assert found[1].tolist() == [0.1942344868838206, 0.2084202781250012]


def test_too_few_samples() -> None:
    assert steps_per_epoch(24, 24) == 1
    with pytest.raises(UserError, match=r"global_batch=24 is larger .* 23 samples"):
        steps_per_epoch(23, 24)


def test_evaluation_counts_every_sample_once_in_the_same_batches() -> None:
    for samples in range(0, 30):
        for world_size in range(1, 7):
            shares = [batch_share(samples, 4, rank, world_size) for rank in range(world_size)]
            assert [b for mine in shares for b in mine] == list(range(-(-samples // 4)))


def test_keyed_numbers_are_uniform_and_independent() -> None:
    u = uniforms(Purpose.CROP, 1, 2, np.arange(20000), 6)
    assert ((u >= 0) & (u < 1)).all()
    # Standard errors: 0.002 of a mean, 0.0021 of a quantile's share, 0.007 of a correlation.
    assert np.abs(u.mean(axis=0) - 0.5).max() < 0.01
    for quantile in (0.01, 0.1, 0.5, 0.9):
        assert np.abs((u < quantile).mean(axis=0) - quantile).max() < 0.015
    neighbours = np.column_stack([u[:-1], u[1:]])
    correlation = np.corrcoef(neighbours.T) - np.eye(12)
    assert np.abs(correlation).max() < 0.04
