"""Ranks in processes of their own that join a world and add up their numbers."""

from __future__ import annotations

import ctypes
import importlib
import os
import socket
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

# Of Linux, for setns, unshare and mount; Python has them from 3.12 on.
_NETWORK, _NAME, _MOUNTS = 0x40000000, 0x04000000, 0x00020000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000


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


def start_on(end: str, folder: Path, rank: int, hosts: Path, **more: str) -> Rank:
    """Rank ``rank`` of two, as a machine of its own: its network, name and /etc/hosts."""
    kept = {key: value for key, value in os.environ.items() if key not in _CLEARED}
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    meeting = {"ADAFILTER_MEETING": str(folder / "meeting")}
    attempt = forked.server().fork(
        [],
        folder=folder,
        environment=kept | place | meeting | {"OMP_NUM_THREADS": "1", **more},
        clean=True,
        output=folder / f"node.{rank}.txt",
        before=[__name__, run_on.__name__, end, hosts.suffix[1:], str(hosts)],
    )
    return Rank(attempt)


def run_on(end: str, host: str, hosts: str) -> int:
    """In the forked process: move to the network namespace ``end``, and join from there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(returned: int) -> None:
        if returned != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    with open(f"/run/netns/{end}") as namespace:
        must(libc.setns(namespace.fileno(), _NETWORK))
    must(libc.unshare(_NAME | _MOUNTS))
    must(libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None))
    must(libc.mount(hosts.encode(), b"/etc/hosts", None, _BIND, None))
    socket.sethostname(host)
    return _ended(join)


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
