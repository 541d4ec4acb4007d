"""Five hundred kills of every kind: ``pytest -m long tests/kills``, in half an hour.

Not part of ``make test``. ``ADAFILTER_KILLS`` is how many, ``ADAFILTER_KILLS_SEED`` draws others.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.kills.conftest import LOADERS, SEED, NewChain, Reference
from tests.kills.same import differences
from tests.kills.test_random import kill_at_random
from tests.kills.test_torchrun import kill_under_torchrun
from tests.kills.test_trainer import kill_at_calls
from tests.kills.test_writer import kill_at_calls_of_saves

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("ADAFILTER_KILLS", "500"))
CHAIN = 10  # kills of one run, before it is left alone to be compared


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("loader", LOADERS)
def test_every_call_of_a_save(
    new_chain: NewChain, undisturbed: Reference, world_size: int, loader: str
) -> None:
    kill_at_calls_of_saves(new_chain, undisturbed, world_size, loader, every=True)


def test_every_call_of_the_training(new_chain: NewChain, undisturbed: Reference) -> None:
    kill_at_calls(new_chain, undisturbed, random.Random(SEED), chains=CHAIN)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("loader", LOADERS)
def test_at_random(
    new_chain: NewChain, undisturbed: Reference, world_size: int, loader: str
) -> None:
    draw = random.Random(f"long {SEED} {world_size} {loader}")
    # The calls above take some four hundred of all.
    for _ in range(max(1, KILLS // 5 // 4 // CHAIN)):
        one = [world_size > 1 and draw.random() < 0.5 for _ in range(CHAIN)]
        kill_at_random(new_chain, undisturbed, draw, world_size, loader, one)


def test_under_torchrun(new_chain: NewChain, undisturbed: Reference) -> None:
    draw = random.Random(SEED)
    for number in range(max(2, KILLS // 100)):
        chain = new_chain(2)
        chain.folder.mkdir()
        kill_under_torchrun(chain, draw, ["rank", "all ranks"])
        last = ("all ranks and the agent", "agent")[number % 2]
        kill_under_torchrun(chain, draw, ["rank", last])
        assert differences(chain.end(), undisturbed(2, "numba")) == []
