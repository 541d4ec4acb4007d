"""A program that claims a run and saves in all the ways a run saves; to be recorded.

    python -m tests.powercut.saving FOLDER

It says what others may rely on from then on: "claimed ATTEMPT", "ended ATTEMPT"; the writer's
process says which step it saved. "back to STEP" is said before a damage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from adafilter_dist.checkpoint import writer
from adafilter_dist.checkpoint.saver import Saved, Saver
from adafilter_dist.checkpoint.store import Checkpoints, Position
from adafilter_dist.engine import FullState
from adafilter_dist.run.ownership import Ownership, claim
from adafilter_dist.system.json_lines import JsonLines, cut_after
from tests.powercut.replay import SETTLED, marked

FROZEN = frozenset({"conv.frozen_weight"})


def state(step: int) -> FullState:
    """The state after ``step`` steps: a few hundred bytes in each file."""
    return FullState(
        model={
            "conv.weight": torch.full((4, 3), float(step)),
            "conv.frozen_weight": torch.arange(40.0),
            "bn.num_batches_tracked": torch.tensor(step),
        },
        optimizer={"conv.weight/momentum_buffer": torch.full((4, 3), -float(step))},
        ema={"conv.weight": torch.full((4, 3), step / 2)},
        scaler={"scale": 2.0**step},
    )


def run_in(folder: Path) -> Path:
    """The run, in folders that claiming it makes."""
    return folder / "demo" / "0123abcd"


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def attempt(run: Path, *steps: int) -> Ownership:
    """One attempt at a run: claim it, go on from what is there, save at ``steps``."""
    ownership = claim(run)
    say(f"claimed {ownership.attempt}")
    checkpoints = Checkpoints(run)
    found = checkpoints.newest(lambda line: None)
    cut_after(run / "metrics.jsonl", found.position.step if found else 0)
    saver = Saver(ownership, keep=2)
    saver.start_from(FROZEN, checkpoints.frozen_entry, found.position.step if found else None)
    rows = JsonLines(run / "metrics.jsonl")
    last = found.position.step if found else 0
    for step in steps:
        for number in range(last + 1, step + 1):
            rows.write({"kind": "train", "step": number})
        last = step
        saver.save(state(step), Position(step=step), {}, [run / "metrics.jsonl"])
        result = saver.result(wait=True)
        assert isinstance(result, Saved), result
    rows.close()
    saver.close()
    return ownership


def main(folder: Path) -> None:
    run = run_in(folder)
    writer.command = lambda: marked("adafilter_dist.checkpoint.writer")
    ownership = attempt(run, 1, 2, 4)
    damages: list[tuple[str, int, list[int]]] = [
        ("step-000000004/model.safetensors", 2, [3, 4]),  # step 3 must become the newest
        ("step-000000004/optimizer.safetensors", 3, [4]),  # is in the way
        ("frozen.0.safetensors", 4, [5]),  # is written again
    ]
    for name, left, steps in damages:
        ownership.end("stopped", "to be damaged", left)
        say(f"ended {ownership.attempt}")
        say(f"back to {left}")
        flip(run / "checkpoints" / name)
        say(SETTLED)
        ownership = attempt(run, *steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
