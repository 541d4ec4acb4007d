"""Killed at any system call of a save, a run ends with the bits of one that was not.

A call that is aimed at is not made: the disk is left as the call before has left it. What the disk
holds after each of the other calls tests/powercut reproduces; test_long.py kills at them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.kills.conftest import NewChain, Reference
from tests.kills.same import differences
from tests.kills.tracing import Call
from tests.kills.writer_kills import kill_at, saves, split, traced_writer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
_LAST_STEPS = 6  # room for one more save that another one follows


def test_a_call_of_each_kind_in_a_first_and_in_a_later_save(
    new_chain: NewChain, undisturbed: Reference
) -> None:
    kill_at_calls_of_saves(new_chain, undisturbed, 1, "numba", every=False)


def kill_at_calls_of_saves(
    new_chain: NewChain, undisturbed: Reference, world_size: int, loader: str, *, every: bool
) -> None:
    """Calls of a first save, which writes the frozen weights too, and of one that drops.

    ``every``: all of them; otherwise one of each system call, of the later save from the rename on.
    """
    wanted = undisturbed(world_size, loader)
    scout = new_chain(world_size, loader)
    first, *more = saves(traced_writer(scout, None))
    assert differences(scout.run, wanted) == []
    scout = new_chain(world_size, loader)
    kill_at(scout, more[2][0])  # three are published
    later, then, *_ = saves(traced_writer(scout, None))
    assert differences(scout.run, wanted) == []

    first_before, first_after = split(first)
    later_before, later_after = split(later)
    assert len(first_before) > 20 and len(later_before) > 10 and first_after
    assert any("unlink" in call.name for call in later_after)
    if not every:
        first_before, first_after = once_each(first_before), once_each(first_after)
        # It is written by the same code: of that its last call, the rename that publishes.
        later_before, later_after = later_before[-1:], once_each(later_after)
    while first_after or later_after:
        chain = new_chain(world_size, loader)
        for call in first_before:
            kill_at(chain, call)
            assert chain.step == 0
        first_before = []
        kill_at(chain, first_after.pop(0) if first_after else first[-1])
        assert chain.step > 0
        traced_writer(chain, then[0])  # one more is published, so that the next one drops
        for call in later_before:
            before = chain.step
            kill_at(chain, call)
            assert chain.step == before
        later_before = []
        while later_after and chain.step < scout.step - _LAST_STEPS:
            before = chain.step
            kill_at(chain, later_after.pop(0))
            assert chain.step > before
        assert differences(chain.end(), wanted) == []


def once_each(made: Sequence[Call]) -> list[Call]:
    """The last call of each name, in order."""
    last = {call.name: call for call in made}
    return sorted(last.values(), key=made.index)
