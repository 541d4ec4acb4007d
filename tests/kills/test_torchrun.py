"""Killed under torchrun, a rank or the agent, a run ends with the bits of one that was not.

test_long.py kills all ranks, and the agent with them; without torchrun test_random.py does.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.distributed.launch import await_that, descendants, kill_tree, ranks_of, start
from tests.kills.chain import Chain, Kill, pidfd
from tests.kills.conftest import SEED, NewChain, Reference
from tests.kills.same import differences

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
PATIENCE = 180.0


def test_a_rank_and_the_agent(new_chain: NewChain, undisturbed: Reference) -> None:
    chain = new_chain(2)
    chain.folder.mkdir()
    draw = random.Random(SEED)
    kill_under_torchrun(chain, draw, ["rank", "agent"])
    assert differences(chain.end(), undisturbed(2, "numba")) == []


def kill_under_torchrun(chain: Chain, draw: random.Random, victims: Sequence[str]) -> None:
    """One torchrun, which starts the ranks again after each of these but the last."""
    agent = start(
        ["train", *chain.words],
        world_size=chain.world_size,
        folder=chain.folder,
        restarts=len(victims) - 1,
    )
    try:
        for victim in victims:
            begun = _starts(chain.folder)
            await_that(lambda begun=begun: _starts(chain.folder) > begun, agent)
            ranks = ranks_of(agent.pid)
            assert len(ranks) == chain.world_size
            _wait([*ranks.values()], draw.uniform(0.0, 0.8))
            where = _kill(agent, ranks, victim, draw)
            chain.note(Kill("under torchrun", where))
            _wait([ranks[0]], PATIENCE)
    finally:
        left = descendants(agent.pid)
        kill_tree(agent.pid)
        output, _ = agent.communicate(timeout=PATIENCE)
    _wait(left, PATIENCE, each=True)
    assert agent.returncode != 0, output


def _kill(
    agent: subprocess.Popen[str], ranks: dict[int, int], victim: str, draw: random.Random
) -> str:
    if victim == "agent":
        # Nobody tells the ranks, which could go on to the end of the run: what is killed next.
        agent.kill()
        agent.wait(PATIENCE)
        _wait([*ranks.values()], 0.5)
        alive = [rank for rank, pid in ranks.items() if Path(f"/proc/{pid}/fd").is_dir()]
        for pid in ranks.values():
            kill_tree(pid)
        return f"the agent; ranks {alive} trained on until they were killed half a second later"
    pids = list(ranks.values())
    if victim == "rank":
        rank = draw.randrange(len(ranks))
        pids, victim = [ranks[rank]], f"rank {rank}"
    if "agent" in victim:
        pids.append(agent.pid)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return victim


def _wait(pids: Sequence[int], seconds: float, *, each: bool = False) -> None:
    """Until one of these, or ``each``, has ended; at most so long."""
    ends = [end for pid in pids if (end := pidfd(pid)) is not None]
    try:
        if not each and len(ends) < len(pids):
            return
        for end in ends if each else [ends]:
            watched = end if isinstance(end, list) else [end]
            ready = select.select(watched, [], [], seconds)[0]
            assert ready or not each, "a process outlived what it belongs to"
    finally:
        for end in ends:
            os.close(end)


def _starts(folder: Path) -> int:
    """Attempts that have begun to train."""
    found = list((folder / "runs").glob("*/*/events.jsonl"))
    lines = found[0].read_text().splitlines(keepends=True) if found else []
    return sum(json.loads(line)["kind"] == "start" for line in lines if line.endswith("\n"))
