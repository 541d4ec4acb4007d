"""Killed, and its newest checkpoint damaged, a run ends with the bits of one that was not (E5)."""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path

import pytest

from tests.checkpoint.saves import hurt
from tests.kills.chain import Chain
from tests.kills.conftest import NewChain, Reference
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
DAMAGES = ("truncated", "flipped", "emptied", "removed")
OF_ONE = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json")
FILES = (*OF_ONE, "manifest.json")
FROZEN = ("frozen.0.safetensors", "frozen.1.safetensors")
PATIENCE = 120.0


def test_each_file_of_the_newest_checkpoint_and_the_frozen_weights(
    new_chain: NewChain, undisturbed: Reference
) -> None:
    chain = new_chain()
    damages = cycle(DAMAGES)
    for name in FILES:
        train_up_to(chain, chain.step + 6)  # the one before it stays behind
        newest = chain.run / "checkpoints" / f"step-{chain.step:09d}"
        hurt(newest / name, next(damages))
        last = newest
    for names in ([FROZEN[0]], [FROZEN[1]], list(FROZEN)):
        train_up_to(chain, chain.step + 3)
        for name in names:
            hurt(chain.run / "checkpoints" / name, next(damages))
    (chain.run / "status.json").write_bytes(b"{")
    run = chain.end()
    said = (chain.folder / "printed.0.txt").read_text()
    for name in FILES:
        assert f"skipping a damaged checkpoint, runs/kills/{run.name}/checkpoints/step-" in said
        assert name in said
    assert said.count("skipping a damaged checkpoint") == len(FILES)
    assert said.count("a damaged copy of the frozen weights is replaced") == 4
    assert "taken from the source weights" in said
    assert "status.json: cannot be read" in said
    # The steps of the damaged ones were passed again, and these are out of the way.
    assert (run / "checkpoints" / f"bad-{last.name}").is_dir()
    assert differences(run, undisturbed(1, "numba")) == []


def test_when_none_is_left_it_says_so_and_deletes_nothing(new_chain: NewChain) -> None:
    chain = new_chain()
    train_up_to(chain, 6)
    folders = sorted((chain.run / "checkpoints").glob("step-*"))
    for folder in folders:
        hurt(folder / "model.safetensors", "flipped")
    before = files(chain.run / "checkpoints")
    (attempt,) = chain.start()
    assert attempt.wait() == 2
    said = attempt.printed()
    assert "every checkpoint is damaged" in said and "resume=never" in said
    assert all(folder.name in said for folder in folders)
    assert "Traceback" not in said
    assert files(chain.run / "checkpoints") == before


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def train_up_to(chain: Chain, step: int) -> None:
    """One attempt, killed as soon as the checkpoint of this step (or a later one) is there."""
    attempts = chain.start()
    until = time.monotonic() + PATIENCE
    while chain.step < step:
        assert not attempts[0].ended_within(0.02), attempts[0].printed()
        assert time.monotonic() < until, attempts[0].printed()
    chain.killed(attempts, "before a file was damaged", lambda: f"at step {chain.step}")
