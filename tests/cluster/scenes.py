"""What happens to runs on a cluster: each scene has one of its own, and tells how it ended."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adafilter_dist.run.files import RunFiles
from tests.cluster.config import Settings
from tests.cluster.interruptions import Interruptions
from tests.cluster.scripted import Scripted
from tests.cluster.slurm import Cluster
from tests.cluster.submitted import RECIPE, SUBMIT, Run
from tests.compare.forked_server import compare
from tests.distributed.launch import wait
from tests.kills.same import differences

EVERY = 10  # checkpoint.every of run.yaml
GRACE = 60  # longer than it takes on a busy machine: we requeue, not SLURM at the grace's end
# Half the processes to wait for, and no figure and no page at the end, which take as long again.
SMALL = ("launch.tasks_per_node=1", "evaluate.test=false")
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
    """How a scene ended: the folders of finished runs, and its rows of the table.

    ``ranks``: of each run, without which its bits cannot be compared.
    """

    runs: list[Path]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ranks: int = 4


def _came_back(run: Run, *reasons: tuple[str, str], lost: int = 0) -> None:
    """Each restart is an event with its reason and who asked; SLURM started it just so often."""
    starts = run.events("start")
    assert [start.get("after") for start in starts[1:]] == [name for name, _ in reasons], run.said()
    requeued = [(row["reason"], row["by"]) for row in run.events("requeued")]
    assert requeued == list(reasons), run.rows("events.jsonl")
    assert run.restarts == len(reasons)
    assert run.steps_lost <= lost, starts


def undisturbed(stage: Stage) -> Ended:
    """Two jobs at once on the same two nodes: one is left alone, one crashes and loses a node.

    The first has two tasks a node, and all that a run does at its end; the second one task.
    """
    with Cluster(stage.folder / "cluster") as cluster:
        # One of them in a folder that SLURM and submitit would read as patterns.
        first = stage.run(cluster, name="first")
        second = stage.run(cluster, *SMALL, name="second 50%j of %t%A_%a")
        for run in (first, second):
            run.submit("launch.additional_parameters={hold: true}")
        _give_a_bug(second)
        cluster.run("scontrol", "release", f"{first.job},{second.job}")
        _freeze_both(first, second)
        again = first.submit()
        assert f"already submitted, job {first.job} is running" in again, again
        ports = {run.type("cat run/jobs/meeting.*") for run in (first, second)}
        assert len(ports) == 2, ports
        shown = first.type(first.lines["status"])
        assert re.search(r"state +(running|stalled)", shown) and str(first.job) in shown, shown
        for run in (first, second):
            run.freeze(False)
        crashed = Interruptions(second)
        crashed.now("a bug in one rank, mended, then `resume=RUN`")
        followed = first.type(first.lines["follow"])  # until the run ends
        assert "run folder" in followed, followed
        first.await_finished()
        assert not first.events("requeued") and first.restarts == 0
        again = first.submit()
        assert "already finished" in again, again
        _mended(second)
        _node_lost(second, "n2", crashed)
        second.await_finished()
        return Ended([first.folder, second.folder], crashed.rows())


def _freeze_both(*runs: Run) -> None:
    """Hold each as soon as it trains."""
    running = [*runs]

    def held() -> bool:
        for run in [run for run in running if run.step >= 1]:
            run.freeze()
            running.remove(run)
        return not running

    runs[0].cluster.wait_for(held, 150, "both train")


def _give_a_bug(run: Run) -> None:
    """To the code that a job not yet begun will run."""
    code = run.folder / "code" / "adafilter_dist" / "training" / "loop.py"
    place = "        session, step = self.session, self.position.step\n"
    bug = "        if step == 15 and session.world.rank == 1:\n            1 / 0\n"
    assert place in code.read_text()
    code.write_text(code.read_text().replace(place, place + bug))


def _mended(run: Run) -> None:
    """The bug: failed and told of, not requeued; without it, the run goes on."""
    run.cluster.wait_for_state(run.job, "FAILED", timeout=150)
    assert run.restarts == 0 and not run.events("requeued")
    shown = run.type(run.lines["status"])
    assert "failed" in shown and "ZeroDivisionError" in shown and "rank 1" in shown, shown
    run.resume()  # with the code as it is here
    run.cluster.run("scontrol", "release", str(run.job))
    run.await_step(25, attempt=2)
    assert run.steps_lost <= 15


def _node_lost(run: Run, node: str, interruptions: Interruptions) -> None:
    """slurmd, its steps and all tasks of a node killed -9; the node comes back later."""
    before = len(run.events("start"))
    interruptions.now("a node lost" if node != "n1" else "the first node lost")
    run.cluster.kill_node(node)
    run.cluster.wait_for(lambda: run.restarts == 1, 90, "the job requeued")
    run.cluster.start_node(node)
    run.await_finished()
    assert run.restarts == 1
    last = run.events("start")[before:]
    # What was taken since the last checkpoint, and during the save that was under way.
    assert len(last) == 1 and last[0]["steps_lost"] < 2 * EVERY, last


def preempted_and_cancelled(stage: Stage) -> Ended:
    """A job of a higher partition wants both nodes, USR2 first; then scancel, then resume=RUN."""
    with Cluster(stage.folder / "cluster", Settings(grace=GRACE, kill_wait=15)) as cluster:
        run = stage.run(cluster, *SMALL)
        done = Interruptions(run)
        _preempted(run, done, "USR2", "preempted")
        run.await_step(35, attempt=2)
        run.freeze()
        done.now("`scancel`, then `resume=RUN`")
        run.type(run.lines["cancel"])
        cluster.wait_for_state(run.job, "CANCELLED")
        assert run.status["state"] == "stopped" and run.status["reason"] == "cancelled", run.said()
        assert len(run.events("requeued")) == 1 and run.restarts == 1
        assert "stopped" in run.type(run.lines["status"])
        run.resume()
        run.await_finished()
        starts = [start.get("after") for start in run.events("start")]
        assert starts == [None, "preempted", "cancelled"]
        assert run.steps_lost == 0
        return Ended([run.folder], done.rows(), ranks=2)


def _preempted(run: Run, done: Interruptions, how: str, reason: str) -> None:
    """Submit it, and have a job of the partition ``high`` take its nodes."""
    run.submit()
    run.await_step(15)
    run.freeze()
    done.now(f"preemption, {how}")
    run.cluster.submit("sleep 1", *_HIGH)
    run.await_step(16, attempt=2)
    _came_back(run, (reason, "we" if reason == "preempted" else "slurm"))


def preempted(stage: Stage, settings: Settings, *words: str, how: str, reason: str) -> Ended:
    """Once, and on to the end."""
    with Cluster(stage.folder / "cluster", settings) as cluster:
        run = stage.run(cluster, *words)
        done = Interruptions(run)
        _preempted(run, done, how, reason)
        run.await_finished()
        return Ended([run.folder], done.rows())


def preempted_without_signal(stage: Stage) -> Ended:
    """TERM at the begin of the grace."""
    settings = Settings(grace=GRACE, user_signal=False)
    return preempted(stage, settings, how="TERM", reason="preempted")


def preempted_without_grace(stage: Stage) -> Ended:
    """TERM, and KILL some seconds later; SLURM has requeued the job already."""
    words = "launch.partition=low0"
    settings = Settings(user_signal=False, kill_wait=15)
    return preempted(stage, settings, words, how="no grace", reason="requeued by SLURM")


def time_limit_and_requeue(stage: Stage) -> Ended:
    """The job comes to its end of time; then scontrol requeue."""
    return _limited(stage, 1, 2, *SMALL)


def time_limit_twice(stage: Stage) -> Ended:
    """Two tasks a node, and twice the end of time before the requeue."""
    return _limited(stage, 2, 4)


def _limited(stage: Stage, times: int, ranks: int, *words: str) -> Ended:
    with Cluster(stage.folder / "cluster", Settings(kill_wait=15)) as cluster:
        run = stage.run(cluster, *words)
        done = Interruptions(run)
        run.submit()
        for attempt in range(1, times + 1):
            run.await_step(16 * attempt - 4, attempt=attempt)
            run.freeze()
            done.now("time limit" if attempt == 1 else "time limit, again")
            cluster.ends_in(run.job, 40)  # SLURM sends USR2 when it next looks
            cluster.wait_for(lambda n=attempt: run.restarts == n, 90, "the job requeued")
            # What is left of the limit moved is two minutes, for the next turn as well.
            cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=10")
        run.await_step(42, attempt=times + 1)
        run.freeze()
        done.now("`scontrol requeue`")
        cluster.run("scontrol", "requeue", str(run.job))
        run.await_finished()
        limit = ("time limit", "we")
        _came_back(run, *[limit] * times, ("requeued by SLURM", "slurm"))
        return Ended([run.folder], done.rows(), ranks)


def first_node_lost(stage: Stage) -> Ended:
    """The node with rank 0 and the batch shell."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        done = Interruptions(run)
        run.submit()
        run.await_step(15)
        _node_lost(run, "n1", done)
        return Ended([run.folder], done.rows())


def rank_killed(stage: Stage) -> Ended:
    """One rank killed -9, as by the kernel when memory is short: failed, not requeued."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster)
        done = Interruptions(run)
        run.submit()
        run.await_step(15)
        done.now("a rank killed -9, then `resume=RUN`")
        os.kill(run.tasks()[1], signal.SIGKILL)
        cluster.wait_for_state(run.job, "FAILED")
        assert run.restarts == 0 and not run.events("requeued")
        assert "rank 1" in run.type(run.lines["status"])
        run.resume()
        run.await_finished()
        return Ended([run.folder], done.rows())


def rank_hung(stage: Stage) -> Ended:
    """One rank stopped, on the second node: the rank of the first one has the job requeued."""
    with Cluster(stage.folder / "cluster", Settings(kill_wait=15)) as cluster:
        run = stage.run(cluster, *SMALL, "engine.hang=15s")
        done = Interruptions(run)
        run.submit()
        run.await_step(15)
        done.now("a rank stopped (`kill -STOP`)")
        os.kill(run.tasks()[1], signal.SIGSTOP)
        cluster.wait_for(lambda: run.restarts == 1, 120, "the job requeued")
        run.await_finished()
        (row,) = run.events("requeued")
        assert row["reason"].startswith("rank 1 on n2 hung") and row["by"] == "we", row
        assert run.steps_lost < 2 * EVERY
        return Ended([run.folder], done.rows(), ranks=2)


def sweep(stage: Stage) -> Ended:
    """An array of two, each of one process; the same words again run none of them."""
    with Cluster(stage.folder / "cluster") as cluster:
        run = stage.run(cluster, name="50%j of %t%A_%a")
        words = [f"recipe={RECIPE}", f"data.prepared={stage.data}", "train.epochs=1"]
        words += ["launch.nodes=1", *SMALL, "optim.lr=0.005,0.01"]
        words += ["engine=deepspeed", "train.precision=fp32"]
        said = run.type(f"python {SUBMIT} {' '.join(words)}")
        found = re.search(r"^status +(.*)", said, re.M)
        assert found, said
        cluster.wait_for(
            lambda: "2 members: 2 finished" in run.type(found[1]), 240, "the sweep", interval=2
        )
        shown = run.type(found[1])
        assert "best of the finished by validation (*): optim.lr=" in shown, shown
        again = run.type(f"python {SUBMIT} {' '.join(words)}")
        assert again.count("already finished") == 2 and "submitted" not in again, again
        return Ended([])


def comparison(stage: Stage) -> Ended:
    """A comparison as arrays, its trials preempted, comes to what it does on this machine."""
    words = [f"recipe={RECIPE}", f"data.prepared={stage.data}", "seeds=0", "tune=2"]
    words += ["methods=finetune,finetune+wise_ft"]
    words += ["launch.nodes=1", "launch.tasks_per_node=1"]
    words += ["data.draw=split_seed"]  # the pictures that are prepared
    here, arrays = stage.folder / "here", stage.folder / "arrays"
    alone = compare([*words, f"compare_dir={here}"], stage.folder)
    with Cluster(stage.folder / "cluster", Settings(grace=GRACE, kill_wait=15)) as cluster:
        run = stage.run(cluster)
        said = run.type(f"python {SUBMIT} compare {' '.join(words)} compare_dir={arrays}")
        jobs = re.findall(r"^submitted job (\d+)", said, re.M)
        assert len(jobs) == 3, said
        trials = [arrays / "trials" / "finetune" / k for k in "01"]
        cluster.wait_for(lambda: all(map(_trains, trials)), 150, "all trials train")
        cluster.submit("true", *_HIGH)
        again = run.type(f"python {SUBMIT} compare {' '.join(words)} compare_dir={arrays}")
        assert "nothing to submit" in again and jobs[1] in again, again
        cluster.wait_for_state(int(jobs[2]), "COMPLETED", timeout=300)
    events = [RunFiles(trial).read_events() for trial in trials]
    assert "preempted" in {row.get("after") for rows in events for row in rows}, events
    ended = wait(alone, 300)
    assert ended.code == 0, ended.output
    assert _outcomes(arrays) == _outcomes(here)
    return Ended([])


def _trains(run: Path) -> bool:
    """Whether a run has begun to train, or is through."""
    return any(row["kind"] == "train" for row in RunFiles(run).read_metrics())


def _outcomes(folder: Path) -> dict[str, object]:
    """What was chosen, the weights of all runs, and the rows of the table but for costs."""
    weights = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.glob("*/*/*/best/model.safetensors")
    }
    choices = {path.name: path.read_text() for path in (folder / "chosen").iterdir()}
    assert len(weights) == 3 and len(choices) == 1
    results = json.loads((folder / "results.json").read_text())
    rows = [{k: v for k, v in row.items() if k != "cost"} for row in results["contenders"]]
    assert len(rows) == 2 and not any(row["problems"] for row in rows), rows
    return {**weights, **choices, "rows": rows}


def zero_preempted(stage: Stage) -> Ended:
    """DeepSpeed, weights in shards: preempted, and beside it a run that is left alone."""
    with Cluster(stage.folder / "cluster", Settings(grace=GRACE)) as cluster:
        words = ("engine=deepspeed", "engine.zero_stage=3", "train.precision=fp32")
        alone, run = (stage.run(cluster, *words, name=name) for name in ("alone", "run"))
        alone.submit()
        alone.await_finished()
        done = Interruptions(run)
        _preempted(run, done, "ZeRO-3", "preempted")
        run.await_finished()
        assert differences(run.folder, alone.folder) == []
        return Ended([], done.rows())


def _script_preempted(stage: Stage, script: str, ranks: int) -> Ended:
    with Cluster(stage.folder / "cluster", Settings(grace=GRACE)) as cluster:
        run = Scripted(cluster, stage.folder / "here", stage.data, script, ranks)
        done = Interruptions(run)
        run.submit()
        run.await_step(15)
        with run.held():
            done.now(f"preemption, `slurm/{script}`")
            cluster.submit("true", *_HIGH)
        run.await_finished()
        _came_back(run, ("preempted", "we"))
        assert "finished" in run.type(f"adafilter status {run.folder}")
        return Ended([run.folder], done.rows())


def node_script_preempted(stage: Stage) -> Ended:
    """slurm/node.sbatch with four processes."""
    return _script_preempted(stage, "node.sbatch", 4)


def nodes_script_preempted(stage: Stage) -> Ended:
    """slurm/nodes.sbatch with two processes on each of two nodes."""
    return _script_preempted(stage, "nodes.sbatch", 2)


SCENES: dict[str, Callable[[Stage], Ended]] = {
    scene.__name__: scene
    for scene in (
        *(undisturbed, time_limit_and_requeue, preempted_and_cancelled),
        *(nodes_script_preempted, rank_hung, sweep, comparison),
        *(preempted_without_signal, preempted_without_grace, first_node_lost, rank_killed),
        *(node_script_preempted, zero_preempted, time_limit_twice),
    )
}
LONG = {
    *("preempted_without_signal", "preempted_without_grace", "first_node_lost", "rank_killed"),
    *("node_script_preempted", "zero_preempted", "time_limit_twice"),
}
