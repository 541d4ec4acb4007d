"""What a job hears of each interruption, and what SLURM says of it then.

launch/requeue.py decides by this whether it or SLURM requeues. All interruptions happen at once,
each to a job on nodes of its own, because SLURM looks at time limits every half minute only.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import needs
from tests.cluster.config import Settings, proctrack
from tests.cluster.slurm import Cluster

pytestmark = pytest.mark.cluster

Lines = list[dict[str, Any]]
HEARD = str(Path(__file__).with_name("heard.py"))
PATIENCE = 120  # seconds, on a busy machine


class Jobs:
    """Jobs with one listening task a node, and what they wrote down."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        self.numbers: dict[str, int] = {}

    def start(self, name: str, nodes: str, *options: str) -> None:
        """Submit the job; ``listening`` waits for it."""
        folder = self._folder / name
        folder.mkdir(parents=True)
        listen = f"{shlex.quote(sys.executable)} {HEARD} {shlex.quote(str(folder))}"
        script = f"""
            trap 'echo TERM >> {folder}/batch' TERM
            trap 'echo USR1 >> {folder}/batch' USR1
            trap 'echo USR2 >> {folder}/batch' USR2
            srun sh -c '{listen} child$SLURM_PROCID & exec {listen}' &
            while kill -0 $! 2>/dev/null; do wait; done
        """
        where = [f"--nodelist={nodes}", "--exclusive", "--ntasks-per-node=1", "--requeue"]
        log = ["--open-mode=append", f"--output={folder / 'log'}"]
        self.numbers[name] = self.cluster.submit(script, *where, *log, *options, folder=folder)

    def lines(self, name: str, who: str = "0", attempt: int = 0) -> Lines:
        """All that a task or its child wrote in one attempt, complete lines only."""
        path = self._folder / name / f"{who}.{attempt}"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def signals(self, name: str, who: str = "0") -> list[str]:
        """What it heard, in order."""
        return [line["signal"] for line in self.lines(name, who)][1:]

    def batch(self, name: str) -> list[str]:
        """What the batch shell heard."""
        path = self._folder / name / "batch"
        return path.read_text().split() if path.exists() else []

    def wait(self, name: str, signal: str = "start", *, attempt: int = 0) -> dict[str, Any]:
        """The first line about ``signal``."""

        def look() -> dict[str, Any] | None:
            lines = self.lines(name, attempt=attempt)
            return next((line for line in lines if line["signal"] == signal), None)

        found = self.cluster.wait_for(look, PATIENCE, f"{name}: {signal} in attempt {attempt}")
        assert found is not None
        return found

    def preempt(self, name: str, nodes: str) -> None:
        """A better job wants the nodes of this one."""
        self.cluster.submit("true", "--partition=high", f"--nodelist={nodes}", "--exclusive")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Every interruption has happened, on a cluster that sends the user signal."""
    if (why := needs.missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("signals")
    with Cluster(folder / "cluster", Settings(nodes=10)) as cluster:
        jobs = Jobs(cluster, folder / "jobs")
        # The first look at time limits is half a minute from here.
        jobs.start("ahead", "n1", "--time=1", "--signal=USR2@20")
        jobs.start("limit", "n2", "--time=1")
        jobs.start("grace", "n3", "--signal=USR2@20")
        jobs.start("plain", "n4")
        jobs.start("batch", "n5", "--signal=B:USR1@20")
        jobs.start("grace0", "n6", "--partition=low0", "--signal=USR2@20")
        jobs.start("scancel", "n7")
        jobs.start("requeue", "n8")
        jobs.start("lost", "n[9-10]")
        for name in jobs.numbers:
            jobs.wait(name)
        cluster.ends_in(jobs.numbers["ahead"], 45)
        cluster.ends_in(jobs.numbers["limit"], 5)
        for name, node in {"grace": "n3", "plain": "n4", "batch": "n5", "grace0": "n6"}.items():
            jobs.preempt(name, node)
        cluster.run("scancel", str(jobs.numbers["scancel"]))
        cluster.run("scontrol", "requeue", str(jobs.numbers["requeue"]))
        cluster.kill_node("n10")
        lost = jobs.numbers["lost"]
        cluster.wait_for_job(lost, lambda job: job["Restarts"] == "1", PATIENCE, "requeued")
        cluster.start_node("n10")
        for name in ("grace", "plain", "batch", "grace0", "requeue", "lost"):
            jobs.wait(name, attempt=1)
            cluster.wait_for_state(jobs.numbers[name], "COMPLETED")
        jobs.wait("ahead", "SIGUSR2")
        jobs.wait("limit", "SIGTERM")
        cluster.wait_for_state(jobs.numbers["limit"], "TIMEOUT")
        cluster.wait_for_state(jobs.numbers["scancel"], "CANCELLED")
        yield jobs


def told(line: dict[str, Any]) -> tuple[str, str, str, bool]:
    """State, reason, restarts, and whether a preemption is under way, when a signal came."""
    preempting = line["PreemptTime"] not in ("", "None")
    # While a signal is on its way to the nodes a running job's state is SIGNALING.
    state = line["JobState"].replace("SIGNALING", "RUNNING")
    return state, line["Reason"], line["Restarts"], preempting


def test_preemption_is_told_by_the_user_signal_ahead_of_it(jobs: Jobs) -> None:
    assert jobs.signals("grace")[:2] == ["SIGUSR2", "SIGTERM"]
    first, second = jobs.lines("grace")[1:3]
    assert told(first) == ("RUNNING", "None", "0", True)
    assert told(second)[:3] == ("COMPLETING", "None", "1")
    assert second["time"] - first["time"] > jobs.cluster.settings.grace - 1
    assert jobs.batch("grace") == ["TERM"]


def test_preemption_is_told_by_term_to_a_job_that_asked_for_no_signal(jobs: Jobs) -> None:
    assert jobs.signals("plain")[:2] == ["SIGTERM", "SIGTERM"]
    first, second = jobs.lines("plain")[1:3]
    assert told(first) == ("RUNNING", "None", "0", True)
    assert told(second)[:3] == ("COMPLETING", "None", "1")


def test_preemption_is_told_to_the_batch_shell_alone_where_that_was_asked_for(jobs: Jobs) -> None:
    assert jobs.batch("batch") == ["USR1", "TERM"]
    assert set(jobs.signals("batch")) == {"SIGTERM"}
    assert told(jobs.lines("batch")[1])[:3] == ("COMPLETING", "None", "1")


def test_preemption_without_grace_has_requeued_when_it_is_heard_of(jobs: Jobs) -> None:
    assert set(jobs.signals("grace0")) == {"SIGUSR2", "SIGTERM"}
    assert {told(line)[2] for line in jobs.lines("grace0")[1:]} == {"1"}


def test_a_limit_is_told_ahead_of_it_while_running(jobs: Jobs) -> None:
    line = jobs.lines("ahead")[1]
    assert (line["signal"], told(line)) == ("SIGUSR2", ("RUNNING", "None", "0", False))
    assert datetime.fromisoformat(line["EndTime"]).timestamp() > line["time"]


def test_a_limit_is_the_reason_when_it_is_over(jobs: Jobs) -> None:
    line = jobs.lines("limit")[1]
    assert (line["signal"], told(line)) == ("SIGTERM", ("COMPLETING", "TimeLimit", "0", False))
    assert jobs.batch("limit") == ["TERM"]


def test_scancel_leaves_no_reason_and_no_restart(jobs: Jobs) -> None:
    line = jobs.lines("scancel")[1]
    assert (line["signal"], told(line)) == ("SIGTERM", ("COMPLETING", "None", "0", False))


def test_a_requeue_by_hand_counts_when_it_is_heard_of(jobs: Jobs) -> None:
    line = jobs.lines("requeue")[1]
    assert line["signal"] == "SIGTERM"
    assert told(line)[:3] == ("COMPLETING", "None", "1")


def test_a_lost_node_hears_nothing_and_the_others_term_once_it_is_missed(jobs: Jobs) -> None:
    assert jobs.signals("lost", "1") == []
    line = jobs.lines("lost")[1]
    assert line["signal"] == "SIGTERM"
    assert told(line)[2] == "1"


def test_children_of_tasks_hear_signals_where_processes_are_followed_as_a_tree(jobs: Jobs) -> None:
    heard = "SIGUSR2" in jobs.signals("grace", "child0")
    assert heard == (proctrack() == "linuxproc")


def test_preemption_is_told_by_term_where_the_site_has_no_user_signal(tmp_path: Path) -> None:
    if (why := needs.missing()) is not None:
        pytest.skip(why)
    with Cluster(tmp_path / "cluster", Settings(nodes=1, user_signal=False)) as cluster:
        jobs = Jobs(cluster, tmp_path / "jobs")
        jobs.start("grace", "n1", "--signal=USR2@20")
        jobs.wait("grace")
        jobs.preempt("grace", "n1")
        line = jobs.wait("grace", "SIGTERM")
        assert told(line) == ("RUNNING", "None", "0", True)
        assert jobs.signals("grace") == ["SIGTERM"]
