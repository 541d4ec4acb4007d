"""Killed at moments that nobody has chosen, a run ends with the bits of one that was not."""

from __future__ import annotations

import random

import pytest

from tests.distributed.launch import kill_tree
from tests.kills.attempts import Attempt
from tests.kills.chain import Chain
from tests.kills.conftest import SEED, NewChain, Reference
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
ALONE = 60.0
"""Seconds in which a rank must notice that it was left alone."""


@pytest.mark.parametrize(
    ("world_size", "loader", "kills"),
    [(1, "torchvision", 6), (1, "ffcv", 4), (2, "torchvision", 4), (2, "ffcv", 4)],
)
def test_killed_at_random(
    new_chain: NewChain, undisturbed: Reference, world_size: int, loader: str, kills: int
) -> None:
    draw = random.Random(f"{SEED} {world_size} {loader}")
    chain = new_chain(world_size, loader)
    for number in range(kills):
        kill_at_random(chain, draw, loader, one=world_size > 1 and number % 2 == 0)
    assert differences(chain.end(), undisturbed(world_size, loader)) == []


def kill_at_random(chain: Chain, draw: random.Random, loader: str, *, one: bool) -> None:
    """Start an attempt and kill it, or ``one`` of its ranks, while it starts, trains or saves."""
    attempts = chain.start()
    moment = draw.uniform(0.1, 2.5)  # seconds: the first step begins after some tenths
    name = f"{loader}, {chain.world_size} rank(s)"
    if not attempts[0].ended_within(moment) and one:
        victim = draw.randrange(len(attempts))
        kill_tree(attempts[victim].pid)
        _see_others_end(attempts, victim)
        chain.killed(attempts, f"at random: one of the ranks, {name}", lambda: f"rank {victim}")
        return
    chain.killed(attempts, f"at random: all, {name}")


def _see_others_end(attempts: list[Attempt], victim: int) -> None:
    for rank, attempt in enumerate(attempts):
        assert rank == victim or attempt.ended_within(ALONE), f"rank {rank} goes on alone"
