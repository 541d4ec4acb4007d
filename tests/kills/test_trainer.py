"""Killed where the training itself writes, a run ends with the bits of one that was not.

Its records, the claim of the run, the best model and what is told at the end: all that the process
which trains writes, syncs and renames. Where the checkpoints are written see test_writer.py.
"""

from __future__ import annotations

import random

import pytest

from tests.kills.conftest import SEED, NewChain, Reference
from tests.kills.same import differences
from tests.kills.trainer_kills import aims, nearest, of_each_site, traced_trainer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
_SAMPLE = 8


def test_a_sample_of_its_calls(new_chain: NewChain, undisturbed: Reference) -> None:
    kill_at_calls(new_chain, undisturbed, random.Random(SEED), chains=1, sample=_SAMPLE)


def kill_at_calls(
    new_chain: NewChain,
    undisturbed: Reference,
    draw: random.Random,
    *,
    chains: int,
    sample: int | None = None,
) -> None:
    """Kill at a sample of the calls, or at all, shared out over so many runs."""
    wanted = undisturbed(1, "numba")
    scout = new_chain()
    made, _ = traced_trainer(scout, None)
    assert differences(scout.run, wanted) == []
    found = aims(made, scout.run)
    assert len(found) > 50
    if sample is not None:
        found = of_each_site(found, draw, sample)
    for number in range(chains):
        chain = new_chain()
        for aim in found[number::chains]:
            call = nearest(aim, made, chain.step)
            if call is None:
                continue
            _, was_killed = traced_trainer(chain, call)
            if not was_killed:
                break  # it came to its end without that call
        assert differences(chain.end(), wanted) == []
