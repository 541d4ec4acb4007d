"""Killed at moments that nobody has chosen, a run ends with the bits of one that was not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.distributed.launch import kill_tree
from tests.kills.attempts import Attempt
from tests.kills.chain import Chain
from tests.kills.conftest import SEED, NewChain, Reference
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
ALONE = 180.0
"""Seconds in which a rank must notice that it was left alone."""


@pytest.mark.parametrize(
    ("world_size", "loader", "kills"),
    [(1, "numba", 3), (1, "ffcv", 2), (2, "numba", 2), (2, "ffcv", 2)],
)
def test_killed_at_random(
    new_chain: NewChain, undisturbed: Reference, world_size: int, loader: str, kills: int
) -> None:
    draw = random.Random(f"{SEED} {world_size} {loader}")
    ranks = [world_size > 1 and number % 2 == 0 for number in range(kills)]
    kill_at_random(new_chain, undisturbed, draw, world_size, loader, ranks)


def kill_at_random(
    new_chain: NewChain,
    undisturbed: Reference,
    draw: random.Random,
    world_size: int,
    loader: str,
    one: Sequence[bool],
) -> None:
    """Kill a run once for each of ``one`` (a single rank, or all of them), then let it end.

    On a fast machine it may come to its end before: that is compared too, and another run begins.
    """
    wanted = undisturbed(world_size, loader)
    chain = new_chain(world_size, loader)
    left = list(one)
    while left:
        if _kill(chain, draw, loader, one=left[0]):
            del left[0]
        else:
            assert differences(chain.run, wanted) == []
            chain = new_chain(world_size, loader)
    assert differences(chain.end(), wanted) == []


def _kill(chain: Chain, draw: random.Random, loader: str, *, one: bool) -> bool:
    """Start an attempt and kill it, or ``one`` of its ranks, while it starts, trains or saves.

    False where the run was finished before.
    """
    attempts = chain.start()
    moment = draw.uniform(0.1, 2.5)  # seconds: the first step begins after some tenths
    name = f"{loader}, {chain.world_size} rank(s)"
    if attempts[0].ended_within(moment):
        codes = [attempt.wait() for attempt in attempts]
        assert codes == [0] * len(attempts), attempts[0].printed()
        return False
    victims = [draw.randrange(len(attempts))] if one else range(len(attempts))
    for victim in victims:
        kill_tree(attempts[victim].pid)
    if one:
        _see_others_end(attempts, victims[0])
    if all(attempt.wait() == 0 for attempt in attempts):
        return False  # it ended between the look and the signal
    if one:
        chain.killed(attempts, f"at random: one of the ranks, {name}", lambda: f"rank {victims[0]}")
        return True
    chain.killed(attempts, f"at random: all, {name}")
    return True


def _see_others_end(attempts: list[Attempt], victim: int) -> None:
    for rank, attempt in enumerate(attempts):
        assert rank == victim or attempt.ended_within(ALONE), f"rank {rank} goes on alone"
