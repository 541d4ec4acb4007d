"""What ranks in processes of their own do on nodes that are only names."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.staging import Beat, Copy, NotStaged
from adafilter_dist.distributed import World, join_world
from adafilter_dist.distributed.nodes import gather
from adafilter_dist.errors import UserError
from adafilter_dist.training import stage_data
from adafilter_dist.training.stage_data import StagingCallbacks, stage_or_verify
from tests.distributed.joining import recipe

TIMEOUT = "5s"  # ranks come apart by seconds on a busy machine


@contextmanager
def joined(stage_to: str | None) -> Iterator[tuple[World, list[str]]]:
    """The world, and the lines that reading from the nodes gives, once copied."""
    chosen = recipe(
        data={"name": "imagefolder", "stage_to": stage_to},
        engine={"device": "cpu", "threads": 1, "timeout": TIMEOUT},
    )
    with join_world(chosen) as world:
        found = [replace(one, host=f"n{one.rank // 2 + 1}") for one in gather(world)]
        ticks: list[float] = []
        watch = StagingCallbacks(tick=lambda: ticks.append(time.monotonic()), stopped=lambda: False)
        data, lines = stage_or_verify(prepared(), chosen, world, found, watch)
        dist.all_reduce(torch.ones(1))
        print(json.dumps({"store": str(data.train_store), "lines": lines, "ticks": len(ticks)}))
        yield world, lines


def prepared() -> Prepared:
    """Two files that are there."""
    folder = Path(os.environ["SHARED"])
    none = np.zeros(0, dtype=np.int64)
    stores = folder / "train.beton", folder / "test.beton"
    return Prepared(folder, ["a"], "f", *stores, none, none, 0.0, 1.0, 0)


def found() -> None:
    """Print what all ranks found."""
    with join_world(recipe()) as world:
        print(json.dumps([asdict(one) for one in gather(world)]))


def slow_copies() -> None:
    """Copies that take longer than a collective may; on the second node there is none."""

    def stage(data: Prepared, place: Path, beat: Beat, *, whole: bool) -> Copy:
        until = time.monotonic() + 8
        while time.monotonic() < until:
            beat(1, 2)
            time.sleep(0.05)
        if os.environ["RANK"] == "2":
            raise NotStaged("no space: 9 GiB are needed, 1 GiB are free")
        return Copy(data.folder.parent / "copy", reused=False)

    stage_data.stage = stage
    with joined("/scratch"):
        pass


def silent_copier() -> None:
    """The second node's copier hangs."""

    def stage(data: Prepared, place: Path, beat: Beat, *, whole: bool) -> Copy:
        beat(0, 2)
        if os.environ["RANK"] == "2":
            time.sleep(60)
        return Copy(data.folder.parent / "copy", reused=True)

    stage_data.stage = stage
    with joined("/scratch"):
        pass


def damaged_source() -> None:
    def stage(data: Prepared, place: Path, beat: Beat, *, whole: bool) -> Copy:
        if os.environ["RANK"] == "2":
            raise UserError("train.beton is damaged")
        return Copy(data.folder.parent / "copy", reused=True)

    stage_data.stage = stage
    with joined("/scratch"):
        pass


def verified() -> None:
    """Nobody copies: the first rank of each node verifies the shared files."""
    with joined(None):
        pass


def here() -> str:
    """The name of this machine."""
    return socket.gethostname()
