"""The scripts of slurm/ in further cases: a run comes back, or does not, as if submitted.

That they are preempted and come back is played with the scenes of test_runs.py.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.config import Settings
from tests.cluster.conftest import Table
from tests.cluster.scripted import RECIPE, Scripted
from tests.cluster.slurm import Cluster
from tests.distributed.launch import adafilter
from tests.kills.same import differences

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]
# Both scripts train with four ranks, so that one undisturbed run is what both must end with.
NODE = ("node.sbatch", 4)
NODES = ("nodes.sbatch", 2)


@pytest.fixture(scope="module")
def data(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data."""
    folder = tmp_path_factory.mktemp("data")
    ended = adafilter("prepare", f"recipe={RECIPE}", f"data.prepared={folder}/x", folder=folder)
    assert ended.code == 0, ended.output
    return folder / "x"


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by plain torchrun, on four ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [f"recipe={RECIPE}", f"data.prepared={data}", f"run_dir={folder}/run"]
    ended = adafilter("train", *words, world_size=4, folder=folder)
    assert ended.code == 0, ended.output
    return folder / "run"


def note(table: Table, run: Scripted, what: str, script: str, began: float) -> None:
    """The row of a run."""
    table(
        interruption=f"{what}, {script}",
        steps_lost=run.steps_lost,
        restarts=len(run.events("start")) - 1,
        seconds=round(time.monotonic() - began),
    )


def test_preempted_by_term(data: Path, undisturbed: Path, tmp_path: Path, table: Table) -> None:
    """Sites without preempt_send_user_signal tell torchrun alone, and not the batch shell."""
    with Cluster(tmp_path / "cluster", Settings(grace=60, user_signal=False)) as cluster:
        run = Scripted(cluster, tmp_path / "here", data, *NODE)
        began = time.monotonic()
        run.submit()
        run.await_step(5)
        cluster.submit("true", "--partition=high", "--exclusive", "--nodes=2")
        run.await_finished()
        note(table, run, "preemption, TERM to torchrun", "node.sbatch", began)
        requeued = [(row["reason"], row["by"]) for row in run.events("requeued")]
        assert requeued == [("preempted", "we")], run.said()
        assert run.restarts == 1 and run.steps_lost == 0
        assert differences(run.folder, undisturbed) == []


def test_time_limit(data: Path, undisturbed: Path, tmp_path: Path, table: Table) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        run = Scripted(cluster, tmp_path / "here", data, *NODES)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        with run.held():
            cluster.ends_in(run.job, 100)  # SLURM sends USR2 when it next looks
        run.await_finished()
        note(table, run, "time limit", "nodes.sbatch", began)
        requeued = [(row["reason"], row["by"]) for row in run.events("requeued")]
        assert requeued == [("time limit", "we")], run.said()
        assert run.restarts == 1 and run.steps_lost == 0
        assert differences(run.folder, undisturbed) == []


def test_cancelled(data: Path, tmp_path: Path, table: Table) -> None:
    with Cluster(tmp_path / "cluster", Settings(kill_wait=15)) as cluster:
        run = Scripted(cluster, tmp_path / "here", data, "node.sbatch", 2)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        with run.held():
            cluster.run("scancel", str(run.job))
        cluster.wait_for_state(run.job, "CANCELLED")
        run.await_state("stopped")
        note(table, run, "scancel", "node.sbatch", began)
        assert run.status["reason"] == "cancelled", run.said()
        assert run.status["step"] >= 15 and not run.events("requeued") and run.restarts == 0


def test_a_killed_worker_is_a_crash(data: Path, tmp_path: Path, table: Table) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        run = Scripted(cluster, tmp_path / "here", data, "nodes.sbatch", 1)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        os.kill(run.workers()[1], signal.SIGKILL)
        cluster.wait_for_state(run.job, "FAILED")
        note(table, run, "a rank killed -9", "nodes.sbatch", began)
        assert not run.events("requeued") and run.restarts == 0, run.said()
        assert "is not requeued" in run.said()


def test_a_node_lost(data: Path, undisturbed: Path, tmp_path: Path, table: Table) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        run = Scripted(cluster, tmp_path / "here", data, *NODES)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        cluster.kill_node("n2")
        cluster.wait_for(lambda: run.restarts == 1, 150, "the job requeued")
        cluster.start_node("n2")
        run.await_finished()
        note(table, run, "node lost", "nodes.sbatch", began)
        assert run.restarts == 1 and len(run.events("start")) == 2, run.said()
        # What was taken since the last checkpoint, and during the save that was under way.
        assert run.steps_lost < 20
        assert differences(run.folder, undisturbed) == []
