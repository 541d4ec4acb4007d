"""What happens to runs on a cluster: each scene has one of its own, and tells how it ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.config import Settings
from tests.cluster.scripted import Scripted
from tests.cluster.slurm import Cluster
from tests.cluster.submitted import RECIPE, SUBMIT, Run

EVERY = 10  # checkpoint.every of run.yaml
GRACE = 60  # longer than it takes on a busy machine: we requeue, not SLURM at the grace's end
_HIGH = ("--partition=high", "--exclusive", "--nodes=2")


@dataclass(frozen=True)
class Stage:
    """Where a scene plays, and the prepared data that its runs read."""

    folder: Path
    data: Path

    def run(self, cluster: Cluster, *words: str, name: str = "") -> Run:
        """A run that is not yet submitted."""
        place = self.folder / name
        place.mkdir(exist_ok=True, parents=True)
        return Run(cluster, place, self.data, *words)


@dataclass(frozen=True)
class Ended:
    """How a scene ended: the folders of finished runs, and its row of the table."""

    runs: list[Path]
    row: dict[str, Any] = field(default_factory=dict)


def _row(run: Run, what: str, began: float) -> dict[str, Any]:
    return {
        "interruption": what,
        "steps_lost": run.steps_lost,
        "restarts": len(run.events("start")) - 1,
        "seconds": round(time.monotonic() - began),
    }


def _came_back(run: Run, *reasons: str, by: str, lost: int = 0) -> None:
    """Each restart is an event with its reason, and SLURM started the job just so often."""
    starts = run.events("start")
    assert [start.get("after") for start in starts[1:]] == list(reasons), run.said()
    requeued = [(row["reason"], row["by"]) for row in run.events("requeued")]
    assert requeued == [(reason, by) for reason in reasons], run.rows("events.jsonl")
    assert run.restarts == len(reasons)
    assert run.steps_lost <= lost, starts


def undisturbed(stage: Stage) -> Ended:
    """Two jobs at once, on the same two nodes."""
    with Cluster(stage.folder / "cluster") as cluster:
        first, second = (stage.run(cluster, name=name) for name in ("first", "second"))
        began = time.monotonic()
        for run in (first, second):
            run.submit()
            run.await_step(1)
            run.freeze()
        again = first.submit()
        assert f"already submitted, job {first.job} is running" in again, again
        ports = {run.type("cat run/jobs/meeting.*") for run in (first, second)}
        assert len(ports) == 2, ports
        shown = first.type(first.lines["status"])
        assert re.search(r"state +(running|stalled)", shown) and str(first.job) in shown, shown
        for run in (first, second):
            run.freeze(False)
        followed = first.type(first.lines["follow"])  # until the run ends
        assert "run folder" in followed, followed
        first.await_finished()
        second.await_finished()
        for run in (first, second):
            assert not run.events("requeued") and run.restarts == 0
        again = first.submit()
        assert "already finished" in again, again
        return Ended([first.folder, second.folder], _row(first, "none", began))


def preempted(stage: Stage, settings: Settings, *words: str, grace: str, reason: str) -> Ended:
    """A job of the partition ``high`` wants both nodes."""
    with Cluster(stage.folder / "cluster", settings) as cluster:
        run = stage.run(cluster, *words)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        run.freeze()
        cluster.submit("sleep 1", *_HIGH)
        run.await_finished()
        _came_back(run, reason, by="we" if reason == "preempted" else "slurm")
        return Ended([run.folder], _row(run, f"preemption, {grace}", began))


def preempted_with_signal(stage: Stage) -> Ended:
    """USR2 at the begin of the grace."""
    return preempted(stage, Settings(grace=GRACE), grace="USR2", reason="preempted")


def preempted_without_signal(stage: Stage) -> Ended:
    """TERM at the begin of the grace."""
    settings = Settings(grace=GRACE, user_signal=False)
    return preempted(stage, settings, grace="TERM", reason="preempted")


def preempted_without_grace(stage: Stage) -> Ended:
    """TERM, and KILL some seconds later; SLURM has requeued the job already."""
    words = "launch.partition=low0"
    settings = Settings(user_signal=False, kill_wait=15)
    return preempted(stage, settings, words, grace="no grace", reason="requeued by SLURM")


def time_limit(stage: Stage) -> Ended:
    """Twice the job comes to its end of time."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        began = time.monotonic()
        run.submit()
        for attempt, step in ((1, 12), (2, 32)):
            run.await_step(step, attempt=attempt)
            run.freeze()
            cluster.ends_in(run.job, 40)  # SLURM sends USR2 when it next looks
        run.await_finished()
        _came_back(run, "time limit", "time limit", by="we")
        return Ended([run.folder], _row(run, "time limit, twice", began))


def requeued(stage: Stage) -> Ended:
    """scontrol requeue."""
    with Cluster(stage.folder / "cluster", Settings(kill_wait=15)) as cluster:
        run = stage.run(cluster)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        run.freeze()
        cluster.run("scontrol", "requeue", str(run.job))
        run.await_finished()
        _came_back(run, "requeued by SLURM", by="slurm")
        return Ended([run.folder], _row(run, "scontrol requeue", began))


def cancelled(stage: Stage) -> Ended:
    """scancel: saved, not requeued, and resumed by the line that was printed."""
    with Cluster(stage.folder / "cluster", Settings(kill_wait=15)) as cluster:
        run = stage.run(cluster)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        run.freeze()
        run.type(run.lines["cancel"])
        cluster.wait_for_state(run.job, "CANCELLED")
        assert run.status["state"] == "stopped" and run.status["reason"] == "cancelled", run.said()
        assert not run.events("requeued") and run.restarts == 0
        assert "stopped" in run.type(run.lines["status"])
        run.resume()
        run.await_finished()
        assert [start.get("after") for start in run.events("start")] == [None, "cancelled"]
        assert run.steps_lost == 0
        return Ended([run.folder], _row(run, "scancel, then resume=RUN", began))


def node_lost(stage: Stage, node: str = "n2") -> Ended:
    """slurmd, its steps and all tasks of a node killed -9; the node comes back later."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        cluster.kill_node(node)
        cluster.wait_for(lambda: run.restarts == 1, 90, "the job requeued")
        cluster.start_node(node)
        run.await_finished()
        assert run.restarts == 1
        assert len(run.events("start")) == 2
        # What was taken since the last checkpoint, and during the save that was under way.
        assert run.steps_lost < 2 * EVERY
        return Ended([run.folder], _row(run, "node lost", began))


def first_node_lost(stage: Stage) -> Ended:
    """The node with rank 0 and the batch shell."""
    ended = node_lost(stage, "n1")
    ended.row["interruption"] = "node lost, the first"
    return ended


def crashed(stage: Stage) -> Ended:
    """A bug in one rank: failed and told of, not requeued; mended, it goes on."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        began = time.monotonic()
        run.submit("launch.additional_parameters={hold: true}")
        code = run.folder / "code" / "adafilter_dist" / "train.py"
        place = "        session, step = self.session, self.position.step\n"
        bug = "        if step == 15 and session.world.rank == 2:\n            1 / 0\n"
        assert place in code.read_text()
        code.write_text(code.read_text().replace(place, place + bug))
        cluster.run("scontrol", "release", str(run.job))
        cluster.wait_for_state(run.job, "FAILED", timeout=150)
        assert run.restarts == 0 and not run.events("requeued")
        shown = run.type(run.lines["status"])
        assert "failed" in shown and "ZeroDivisionError" in shown and "rank 2" in shown, shown
        run.resume()  # with the code as it is here
        cluster.run("scontrol", "release", str(run.job))
        run.await_finished()
        assert run.steps_lost <= 15
        return Ended([run.folder], _row(run, "a bug, mended, then resume=RUN", began))


def rank_killed(stage: Stage) -> Ended:
    """One rank killed -9, as by the kernel when memory is short: failed, not requeued."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        os.kill(run.tasks()[1], signal.SIGKILL)
        cluster.wait_for_state(run.job, "FAILED")
        assert run.restarts == 0 and not run.events("requeued")
        assert "rank 1" in run.type(run.lines["status"])
        run.resume()
        run.await_finished()
        return Ended([run.folder], _row(run, "a rank killed -9, then resume=RUN", began))


def sweep(stage: Stage) -> Ended:
    """An array of four, each of one process; the same words again run none of them."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        words = [f"recipe={RECIPE}", f"data.prepared={stage.data}", "train.epochs=1"]
        words += ["launch.nodes=1", "launch.tasks_per_node=1", "optim.lr=0.005,0.01", "seed=0,1"]
        began = time.monotonic()
        said = run.type(f"python {SUBMIT} {' '.join(words)}")
        found = re.search(r"^status +(.*)", said, re.M)
        assert found, said
        cluster.wait_for(
            lambda: "4 members: 4 finished" in run.type(found[1]), 240, "the sweep", interval=2
        )
        shown = run.type(found[1])
        assert "best of the finished: optim.lr=" in shown, shown
        again = run.type(f"python {SUBMIT} {' '.join(words)}")
        assert again.count("already finished") == 4 and "submitted" not in again, again
        seconds = round(time.monotonic() - began)
        row = {"interruption": "none, a sweep of 4", "steps_lost": 0, "restarts": 0}
        return Ended([], {**row, "seconds": seconds})


def _script_preempted(stage: Stage, script: str, ranks: int) -> Ended:
    with Cluster(stage.folder / "cluster", Settings(grace=GRACE)) as cluster:
        run = Scripted(cluster, stage.folder / "here", stage.data, script, ranks)
        began = time.monotonic()
        run.submit()
        run.await_step(15)
        with run.held():
            cluster.submit("true", *_HIGH)
        run.await_finished()
        _came_back(run, "preempted", by="we")
        assert "finished" in run.type(f"adafilter status {run.folder}")
        return Ended([run.folder], _row(run, f"preemption, slurm/{script}", began))


def node_script_preempted(stage: Stage) -> Ended:
    """slurm/node.sbatch with four processes."""
    return _script_preempted(stage, "node.sbatch", 4)


def nodes_script_preempted(stage: Stage) -> Ended:
    """slurm/nodes.sbatch with two processes on each of two nodes."""
    return _script_preempted(stage, "nodes.sbatch", 2)


SCENES: dict[str, Callable[[Stage], Ended]] = {
    scene.__name__: scene
    for scene in (
        *(time_limit, undisturbed, node_lost, crashed, preempted_with_signal, requeued),
        *(cancelled, sweep, node_script_preempted, nodes_script_preempted),
        *(preempted_without_signal, preempted_without_grace, first_node_lost, rank_killed),
    )
}
LONG = {"preempted_without_signal", "preempted_without_grace", "first_node_lost", "rank_killed"}
