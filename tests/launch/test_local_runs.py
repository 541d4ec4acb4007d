"""Without SLURM, for real: ``python launch/submit.py``, and the commands that it prints."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from adafilter_dist.launch import local
from tests.benchmarks import by_hand
from tests.distributed import forked
from tests.distributed.launch import descendants, kill_tree
from tests.launch.conftest import words
from tests.launch.recorded import Cluster
from tests.launch.test_local import until

pytestmark = pytest.mark.distributed

CLONE = Path(__file__).parents[2]
SCRIPT = CLONE / "launch" / "submit.py"
PROGRAM = f"{sys.executable} {SCRIPT}"
NO_REPORT = "evaluate.test=false"  # figure and page take longer than the training


class Shell:
    """A terminal in a folder from which runs are submitted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        # The commands that are printed are typed as they are, where the package is installed.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
        for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID"):
            self.environment.pop(name, None)
        self.pids: list[int] = []
        self._numbers = count()

    def run(self, command: str, code: int = 0) -> str:
        """Type a command; what it says."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *more: str, typed: bool = False, ends_at_once: bool = False) -> dict[str, str]:
        """Submit, ``typed`` or with all imports made; the lines it prints by their first word."""
        said = self.run(f"{PROGRAM} {shlex.join(more)}") if typed else self.again(*more)
        lines = dict(line.split(maxsplit=1) for line in said.splitlines() if line)
        found = re.search(r"submitted process (\d+)", said)
        if found:
            self.pids.append(int(found[1]))
            if not ends_at_once:
                assert local.is_running(found[1])  # it returned while all is still to do
            lines["process"] = found[1]
        return {**lines, "all": said}

    def again(self, *more: str) -> str:
        """Submit with all imports made; what it says."""
        before = [by_hand.__name__, "run", str(SCRIPT), *more]
        attempt = forked.server().fork(
            [],
            folder=self.place,
            environment=self.environment,
            output=self.place.parent / f"again.{next(self._numbers)}.txt",
            before=before,
            clean=True,
        )
        # What it has submitted goes on.
        assert attempt.ended_within(240) and attempt.code == 0, attempt.printed()
        return attempt.printed()

    def wait(self, run: Path, state: str) -> None:
        """Until a run is in a state and nothing works on it any more."""
        until(lambda: status(run).get("state") in (state, "failed"), 240)
        assert status(run)["state"] == state, log(run)
        until(lambda: not any(local.is_running(str(pid)) for pid in self.pids[-1:]), 60)


@contextmanager
def held(pid: int) -> Iterator[None]:
    """While the block runs, a process and all that it has started stand still."""
    stopped = [pid, *descendants(pid)]
    try:
        for each in stopped:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
        yield
    finally:
        for each in reversed(stopped):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


@pytest.fixture
def shell(tmp_path: Path, no_slurm: Cluster) -> Iterator[Shell]:
    (tmp_path / "here").mkdir()
    found = Shell(tmp_path / "here")
    yield found
    for pid in found.pids:
        if local.is_running(str(pid)):
            kill_tree(pid)


def status(run: Path) -> dict[str, object]:
    known: dict[str, object] = json.loads((run / "status.json").read_text())
    return known


def events(run: Path, kind: str) -> list[dict[str, object]]:
    rows = [json.loads(row) for row in (run / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def step(run: Path) -> int:
    rows = run / "metrics.jsonl"
    return len(rows.read_text().splitlines()) if rows.exists() else 0


def log(run: Path) -> str:
    return "".join(path.read_text() for path in sorted(run.glob("jobs/*.log")))


# One process, the form without torchrun, is what the other tests here submit.
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_submitted_cancelled_resumed_finished(
    shell: Shell, prepared: Path, processes: int, no_slurm: Cluster
) -> None:
    more = [*words(prepared), "launch.nodes=1", f"launch.tasks_per_node={processes}"]
    more += ["launch.cluster=auto", "train.epochs=2", NO_REPORT]
    lines = shell.submit(*more, typed=True)
    assert "no SLURM here (sbatch does not answer)" in lines["all"]
    run = shell.place / lines["run"]
    assert Path(lines["log"]).parent == run / "jobs"

    with held(int(lines["process"])):  # or it might be finished before the next command has begun
        again = shell.again(*more)  # it is queued, or takes the run up just now
        assert "submitted process" not in again
        assert "already submitted, process" in again or "in use by" in again
        stands = shell.run(lines["status"])
        assert re.search(r"state +(queued|running)", stands), stands

    followed = subprocess.Popen(
        ["bash", "-c", f"exec {lines['follow']}"],
        cwd=shell.place,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: step(run) >= 3, 240)
        with held(int(lines["process"])):
            shell.run(lines["cancel"])
        shell.wait(run, "stopped")
        told, _ = followed.communicate(timeout=150)  # it ends by itself
    finally:
        followed.kill()
    assert "stopped by SIGTERM at step" in told and "the run is stopped" in told
    at = status(run)["step"]
    assert isinstance(at, int) and (run / "checkpoints" / f"step-{at:09d}").is_dir()

    command = lines["resume"].removeprefix("python launch/submit.py ")
    assert command.startswith("resume="), lines["resume"]
    resumed = shell.run(f"{PROGRAM} {command}")
    shell.pids.append(int(re.findall(r"submitted process (\d+)", resumed)[0]))
    shell.wait(run, "finished")
    _, second = events(run, "start")
    assert (second["step"], second["steps_lost"], second["world_size"]) == (at, 0, processes)
    assert second["after"] == "SIGTERM"
    assert sorted(path.name for path in run.glob("jobs/*.log")) == ["local.1.log", "local.2.log"]

    before = sorted(shell.place.rglob("*"))
    repeated = more if processes == 1 else shlex.split(command)
    assert "already finished" in shell.again(*repeated)
    assert sorted(shell.place.rglob("*")) == before


def test_a_sweep_one_after_the_other(shell: Shell, prepared: Path) -> None:
    more = [*words(prepared), "launch.cluster=local", "launch.nodes=1", "launch.tasks_per_node=1"]
    more += ["train.epochs=1", "seed=0,1", NO_REPORT]
    lines = shell.submit(*more)
    (folder,) = (shell.place / "runs").glob("*/sweep-*")
    table = json.loads((folder / "sweep.json").read_text())
    first, second = (Path(member["run"]) for member in table["members"])
    assert [member["values"] for member in table["members"]] == [{"seed": 0}, {"seed": 1}]

    until(lambda: status(first)["state"] == "running", 240)
    with held(int(lines["process"])):  # the first must not end, and the second not begin
        waits = shell.run(f"adafilter status {second}")
        assert re.search(r"state +queued", waits), waits
        again = shell.again(*more)
    assert "submitted process" not in again
    assert re.search("in use by process|already finished", again)
    assert f"{second.relative_to(shell.place)}: already submitted, process" in again

    shell.wait(second, "finished")
    assert status(first)["state"] == "finished"
    assert events(second, "start")[0]["time"] > events(first, "finished")[0]["time"]
    assert "2 members: 2 finished" in shell.run(lines["status"])
    before = sorted(shell.place.rglob("*"))
    assert shell.again(*more).count("already finished") == 2
    assert sorted(shell.place.rglob("*")) == before


def test_a_job_that_ends_before_it_began_says_so(shell: Shell, prepared: Path) -> None:
    more = [*words(prepared), "launch.cluster=local", "launch.nodes=1", "launch.tasks_per_node=1"]
    # Found out by the job alone: this machine has it, its job has not.
    lines = shell.submit(*more, "launch.environment={RANK: 0}", ends_at_once=True)
    run = shell.place / lines["run"]
    shell.wait(run, "failed")
    assert "before it began" in shell.run(lines["status"])
    assert "MASTER_ADDR" in log(run)


# Python runs it when it starts. In the training it waits for what nobody writes.
_WAITING_START = """
import sys
if "train" in sys.orig_argv:
    open({pipe!r}).read()
"""


def test_cancelled_while_it_starts(shell: Shell, prepared: Path, tmp_path: Path) -> None:
    pipe, site = tmp_path / "pipe", tmp_path / "site"
    os.mkfifo(pipe)
    site.mkdir()
    (site / "sitecustomize.py").write_text(_WAITING_START.format(pipe=str(pipe)))
    shell.environment["PYTHONPATH"] = str(site)
    more = [*words(prepared), "launch.cluster=local", "launch.nodes=1", "launch.tasks_per_node=1"]
    lines = shell.submit(*more)
    worker, run = int(lines["process"]), shell.place / lines["run"]
    writers: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # nobody has opened it to read
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    until(is_read)
    os.kill(worker, signal.SIGTERM)
    shell.wait(run, "stopped")
    os.close(writers[0])
    assert "stopped" in shell.run(lines["status"])
    assert not (run / "metrics.jsonl").exists()
