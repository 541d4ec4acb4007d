"""Which runs the words mean, and which of them there is still something to do for."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.launch.submit import (
    command_lines,
    still_to_do,
    sweep_folder,
    write_sweep,
)
from adafilter_dist.launch.target import Target, find_targets
from adafilter_dist.status.sweep import read_sweep
from tests.launch.conftest import words
from tests.launch.recorded import Cluster
from tests.run.test_ownership import holder
from tests.shared.following import JOB, submit, write_status

Find = Callable[..., list[Target]]


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: Cluster) -> Find:
    """The runs that more words mean, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *more: find_targets([*words(tmp_path / "data"), *more], ())


def told(targets: list[Target]) -> tuple[list[Path], list[str]]:
    said: list[str] = []
    return [target.run for target in still_to_do(targets, said.append)], said


def test_a_new_run_and_one_that_stopped_are_to_do(find: Find) -> None:
    (target,) = find()
    assert told([target]) == ([target.run], [])
    write_status(target.run, "stopped", reason="SIGTERM")
    assert told(find()) == ([target.run], [])
    write_status(target.run, "failed")
    assert told(find()) == ([target.run], [])


def test_finished_members_of_a_sweep_are_left_out(find: Find) -> None:
    first, second = find("seed=0,1")
    write_status(first.run, "finished")
    left, said = told(find("seed=0,1"))
    assert left == [second.run]
    assert said == [f"{first.run}: already finished; resume=never starts another"]


@pytest.mark.parametrize(
    ("state", "still"), [("PENDING", False), ("RUNNING", False), ("FAILED", True)]
)
def test_what_slurm_has_is_not_given_to_it_again(
    find: Find, no_slurm: Cluster, state: str, still: bool
) -> None:
    first, second = find("seed=0,1")
    submit(second.run, job=f"{JOB}_1")
    no_slurm.say("squeue", f"{JOB}_1|{JOB}|{state}|N/A||None\n")
    left, said = told(find("seed=0,1"))
    assert left == ([first.run, second.run] if still else [first.run])
    assert still or f"job {JOB}_1 is {state.lower()}; scancel {JOB}_1 takes it back" in said[0]


def test_a_run_that_somebody_trains_is_left_to_him(find: Find) -> None:
    (target,) = find()
    with holder(target.run) as (process, _):
        left, said = told([target])
        assert left == [] and f"in use by process {process.pid} on" in said[0]
    assert told([target]) == ([target.run], [])  # he was killed


def test_only_this_machines_processes_are_asked_for(find: Find) -> None:
    (target,) = find()
    submit(target.run, job=str(os.getpid()), cluster="local")  # the id went to another process
    assert told([target])[0] == [target.run]


def test_a_sweep_is_named_after_its_members_in_any_order(find: Find, tmp_path: Path) -> None:
    targets = find("seed=0,1", "optim.lr=0.1,0.2")
    folder = sweep_folder(targets)
    assert folder is not None and folder == sweep_folder(find("optim.lr=0.2,0.1", "seed=1,0"))
    assert folder != sweep_folder(find("seed=0,1"))
    assert sweep_folder(find()) is None
    write_sweep(folder, targets)
    sweep = read_sweep(folder)
    assert sweep is not None and sweep.keys == ["seed", "optim.lr"]
    assert [run for run, _ in sweep.members] == [target.run.absolute() for target in targets]
    assert sweep.members[1][1] == {"seed": 0, "optim.lr": 0.2}


def test_the_run_of_a_folder_with_other_words_that_are_free(find: Find, tmp_path: Path) -> None:
    (target,) = find()
    target.enqueue()
    (again,) = find_targets([f"resume={target.run}", "launch.time=8h"], ())
    assert (again.run, again.recipe.launch.time) == (target.run, "8h")
    assert again.plan.decision.changes["launch.time"] == ("10min", "8h")
    with pytest.raises(UserError, match=r"optim\.lr"):
        find_targets([f"resume={target.run}", "optim.lr=0.9"], ())
    assert find_targets([f"resume={target.run}", "optim.lr=0.9"], ("optim.lr",))


def test_what_is_noted_is_undone(find: Find) -> None:
    (target,) = find()
    write_status(target.run, "stopped", step=7)
    kept = (target.run / "status.json").read_bytes()
    before = target.enqueue()
    noted = json.loads((target.run / "status.json").read_text())
    assert (noted["state"], noted["step"]) == ("queued", 7)
    target.dequeue(before)
    assert (target.run / "status.json").read_bytes() == kept


def test_commands_can_be_copied(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "it's"
    lines = command_lines("python launch/submit.py", run, "slurm", "4711_2")
    assert lines["cancel"] == "scancel 4711_2"
    assert shlex.split(lines["status"]) == ["adafilter", "status", str(run)]
    assert shlex.split(lines["follow"]) == ["adafilter", "logs", str(run), "--follow"]
    assert shlex.split(lines["resume"])[2] == f"resume={run}"
    assert command_lines("adafilter submit", run, "local", "99")["cancel"] == "kill 99"
