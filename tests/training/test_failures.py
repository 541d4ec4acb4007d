"""What a rank leaves behind when it dies of an exception, whatever the disk does."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from adafilter_dist.distributed import World
from adafilter_dist.distributed.lost_peer import RankError
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import load_recipe
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.run.ownership import LostRunError
from adafilter_dist.status import read_run
from adafilter_dist.training.failures import failures_recorded


def world(rank: int) -> World:
    return World(rank, 4, rank, 4, torch.device("cpu"), 1)


def die(run: RunFolder, rank: int, error: BaseException) -> dict[str, Any] | None:
    """The note that a rank leaves which dies of ``error`` in attempt 1."""
    with pytest.raises(type(error)) as raised, failures_recorded(run, world(rank), 1):
        raise error
    assert raised.value is error
    note = run.path / "attempts" / "1" / f"failed.{rank}.json"
    return json.loads(note.read_text()) if note.exists() else None


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose first attempt is this process."""
    found = RunFolder(tmp_path / "run")
    assert found.enter(load_recipe(["recipe=demo"])) == 1
    found.status("running")
    return found


def test_a_bug_on_the_first_rank(run: RunFolder) -> None:
    note = die(run, 0, ValueError("a bug\nof two lines"))
    assert note is not None and note["rank"] == 0
    assert abs(note["time"] - time.time()) < 60
    assert note["error"][0].startswith("Traceback")
    assert note["error"][-2:] == ["ValueError: a bug", "of two lines"]
    found = read_run(run.path)
    assert (found.state, found.reason) == ("failed", "ValueError: a bug")
    assert found.failure is not None and found.failure.rank == 0


def test_bad_input_leaves_its_lines_alone(run: RunFolder) -> None:
    note = die(run, 3, UserError("optim.lr: too large\nmodel.name: unknown"))
    assert note is not None
    assert note["error"] == ["optim.lr: too large", "model.name: unknown"]


def test_at_most_15_lines_of_bounded_length(run: RunFolder) -> None:
    note = die(run, 1, UserError("\n".join(f"{n} {'x' * 5000}" for n in range(40))))
    assert note is not None and len(note["error"]) == 15
    assert note["error"][-1].startswith("39 x") and len(note["error"][-1]) == 1000


@pytest.mark.parametrize(
    "error", [RankError("lost"), LostRunError("taken over"), KeyboardInterrupt(), SystemExit(1)]
)
def test_what_is_no_failure_of_its_own_leaves_no_note(run: RunFolder, error: BaseException) -> None:
    assert die(run, 1, error) is None
    assert die(run, 0, error) is None
    assert read_run(run.path).state == "failed"


def test_nothing_hides_the_error(run: RunFolder) -> None:
    class WithoutWords(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert die(run, 0, WithoutWords()) is not None
    shutil.rmtree(run.path)
    assert die(run, 0, ValueError("the disk is gone")) is None
    assert die(run, 2, ValueError("the disk is gone")) is None
