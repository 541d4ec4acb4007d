"""Ranks in processes of their own that join a world and add up their numbers."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from adafilter_dist.distributed import join_world, world
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.schema import Recipe
from tests.distributed import forked
from tests.kills.attempts import Attempt

_CLEARED = ("MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "GLOO_SOCKET_IFNAME")


@dataclass(frozen=True)
class Rank:
    """One that was started."""

    process: Attempt

    def end(self, timeout: float = 90) -> tuple[int, str]:
        """(exit code, output) once it has ended."""
        return self.process.wait(timeout), self.process.printed()


def start(
    folder: Path, rank: int, world_size: int, meeting: Path, what: str = "join", **more: str
) -> Rank:
    """Start a rank of the meeting; ``what`` is a function, of this module or MODULE:FUNCTION.

    What it prints goes into ``folder``; ``more`` is added to its environment.
    """
    place = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "ADAFILTER_MEETING": str(meeting),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    kept = {key: value for key, value in os.environ.items() if key not in _CLEARED}
    attempt = forked.server().fork(
        [],
        folder=folder,
        environment=kept | place,
        clean=True,
        output=folder / f"{meeting.name}.{rank}.txt",
        before=[__name__, run.__name__, what],
    )
    return Rank(attempt)


def recipe(**sections: dict[str, Any]) -> Recipe:
    """A recipe that up to eight CPU ranks may train."""
    return Recipe.model_validate(
        {
            "name": "joining",
            "data": {"name": "imagefolder"},
            "train": {"global_batch": 16, "micro_batch": 2},
            "engine": {"device": "cpu", "threads": 1},
            **sections,
        }
    )


def run(what: str) -> int:
    """In the forked process: do ``what``; its exit code."""
    module, _, function = what.rpartition(":")
    return _ended(getattr(importlib.import_module(module or __name__), function))


def _ended(work: Callable[[], None]) -> int:
    try:
        work()
    except UserError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    return 0


def join() -> None:
    """Join, add up, and leave."""
    with join_world(recipe()) as joined:
        total = torch.tensor(joined.rank + 1)
        dist.all_reduce(total)
        print(f"sum {int(total)} gloo {os.environ.get('GLOO_SOCKET_IFNAME')}", flush=True)


def join_or_hide() -> None:
    """Join as if the first rank alone had a GPU."""
    if os.environ["RANK"] == "0":
        world._device = lambda wanted, local_rank: torch.device("cuda", 0)
        torch.cuda.set_device = lambda device: None
    join()


def only_meet() -> None:
    """Meet the others, but never become a part of the process group."""
    from datetime import timedelta

    from adafilter_dist.distributed.meeting_file import meet_in_file

    file, rank = Path(os.environ["ADAFILTER_MEETING"]), int(os.environ["RANK"])
    meeting = meet_in_file(file, rank, 2, within=30, timeout=timedelta(seconds=30))
    time.sleep(60)
    meeting.leave()


def outputs(ranks: Sequence[Rank]) -> list[tuple[int, str]]:
    """How each ended."""
    return [rank.end() for rank in ranks]


if __name__ == "__main__":
    sys.exit(_ended(join))
