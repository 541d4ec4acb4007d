"""Small states, saved by the real process that writes and read back by a fresh reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from adafilter_dist.checkpoint.saver import Failed, Saved, Saver
from adafilter_dist.checkpoint.store import Checkpoints, Position
from adafilter_dist.engine import FullState
from adafilter_dist.run.ownership import claim

FROZEN = frozenset({"conv.frozen_weight"})


def state(value: float) -> FullState:
    return FullState(
        model={
            "conv.weight": torch.full((4, 3, 3, 3), value).to(memory_format=torch.channels_last),
            "conv.frozen_weight": torch.arange(9.0),
            "bn.num_batches_tracked": torch.tensor(7),
        },
        optimizer={"conv.weight/momentum_buffer": torch.full((4, 3, 3, 3), -value)},
        scaler={"scale": 2.0**16},
    )


class Attempt:
    """What an attempt does with its checkpoints: go on from the newest, then save."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.run = run
        self.said: list[str] = []
        self.ownership = claim(run)
        self.saver = Saver(self.ownership, keep=keep)
        checkpoints = Checkpoints(run)
        self.loaded = checkpoints.newest(self.said.append)
        resumed_step = self.loaded.position.step if self.loaded else None
        self.saver.start_from(FROZEN, checkpoints.frozen_entry, resumed_step)

    def save(self, *steps: int) -> list[Path]:
        """Save at each step and wait for it; the folders."""
        folders = []
        for step in steps:
            result = self.try_to_save(step)
            assert isinstance(result, Saved), result
            folders.append(self.run / "checkpoints" / result.folder)
        return folders

    def try_to_save(self, step: int) -> Saved | Failed | None:
        self.saver.save(state(float(step)), Position(step=step), {"run_hash": "x"})
        return self.saver.result(wait=True)

    def end(self) -> None:
        self.saver.close()
        self.ownership.end("stopped", "", None)


@contextmanager
def attempt(run: Path, keep: int = 2) -> Iterator[Attempt]:
    one = Attempt(run, keep)
    try:
        yield one
    finally:
        one.end()


def save(run: Path, *steps: int) -> list[Path]:
    """The folders of checkpoints that one attempt saved at ``steps``."""
    with attempt(run) as one:
        return one.save(*steps)


def newest(run: Path) -> tuple[int | None, list[str]]:
    """Step of the newest good checkpoint for a fresh process, and what was said on the way."""
    said: list[str] = []
    loaded = Checkpoints(run).newest(said.append)
    return (loaded.position.step if loaded else None), said


def hurt(path: Path, damage: str) -> None:
    """Damage a file: truncated, flipped (one bit), emptied or removed."""
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
