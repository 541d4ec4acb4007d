"""After torchrun has ended in a batch script: which ends are ends of the job, and which are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adafilter_dist.launch.after_torchrun import (
    Ending,
    decide_after_torchrun,
    finish_job,
    how_it_ended,
    nodes_answer,
)
from adafilter_dist.launch.requeue import RequeueDecision
from tests.launch.recorded import Cluster

JOB, RESTART = "77", 1
NEAR = 120.0
FAR = "EndTime=4000000000"
LOST = "LostPeerError: rank 0 (cpu) lost another rank (Connection reset by peer)"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """SLURM is what the test lets it say; this process is the batch shell of a restarted job."""
    found = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder))
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(RESTART))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    return found


def tell(cluster: Cluster, state: str = "RUNNING", restarts: int = RESTART, more: str = "") -> None:
    said = f"JobId={JOB} JobState={state} Reason=None Restarts={restarts} {FAR} PreemptTime=None"
    cluster.say("scontrol", f"{more} {said}".strip())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that this start of the job has claimed as its third attempt."""
    folder = tmp_path / "run"
    claim(folder, 3)
    return folder


def claim(run: Path, number: int, job: str = JOB, restart: int = RESTART) -> None:
    place = run / "attempts" / str(number)
    place.mkdir(parents=True)
    owner = {"host": "n1", "machine": "", "pid": 1, "born": 1, "job": job, "restart": restart}
    (place / "owner.json").write_text(json.dumps({**owner, "attempt": number}))


def status(run: Path, state: str, reason: str = "", attempt: int = 3) -> None:
    words = {"state": state, "reason": reason, "attempt": attempt, "step": 30}
    (run / "status.json").write_text(json.dumps(words))


def ended(run: Path, code: int = 1) -> Ending:
    return how_it_ended(run, JOB, RESTART, code)


def test_the_run_folder_tells_how_it_ended(run: Path) -> None:
    status(run, "finished")
    assert ended(run).kind == "finished"
    status(run, "stopped", "preempted")
    assert ended(run) == Ending("stopped", "preempted")
    status(run, "failed", LOST)
    assert ended(run) == Ending("cut", LOST)
    status(run, "running")
    assert ended(run).kind == "cut"
    status(run, "failed", "ValueError: x")
    assert ended(run) == Ending("crashed", "ValueError: x")
    # Rank 0 lost another rank, which has told why.
    status(run, "failed", LOST)
    (run / "attempts" / "3" / "failed.2.json").write_text("{}")
    assert ended(run).kind == "crashed"


def test_a_hang_comes_back_unless_the_job_is_cancelled(cluster: Cluster, run: Path) -> None:
    reason = "rank 1 on n2 hung in forward of step 6"
    status(run, "failed", reason)
    (run / "attempts" / "3" / "hung.json").write_text("{}")
    hung = ended(run)
    assert hung == Ending("hung", reason)
    tell(cluster)
    assert decide_after_torchrun(hung, "", NEAR) == RequeueDecision(reason, "we")
    tell(cluster, "COMPLETING")
    assert decide_after_torchrun(hung, "SIGTERM", NEAR).by == "nobody"


def test_what_an_earlier_attempt_left_says_nothing(run: Path) -> None:
    status(run, "stopped", "preempted", attempt=2)
    assert ended(run).kind == "cut"
    # torchrun ended before a rank had claimed the run, or the run was finished before.
    claim(run, 4, restart=0)
    assert ended(run, code=1).kind == "cut"
    assert ended(run, code=0).kind == "finished"
    assert how_it_ended(run.parent / "none", JOB, RESTART, 1).kind == "cut"


@pytest.mark.parametrize("ending", [Ending("stopped", "preempted"), Ending("cut")])
def test_a_preemption_comes_back(cluster: Cluster, ending: Ending) -> None:
    tell(cluster, more="PreemptTime=1795410000")
    assert decide_after_torchrun(ending, "SIGUSR2", NEAR) == RequeueDecision("preempted", "we")
    assert decide_after_torchrun(ending, "", NEAR) == RequeueDecision(
        "preempted", "we"
    )  # TERM to the ranks alone


def test_what_slurm_has_requeued_is_not_requeued_again(cluster: Cluster) -> None:
    tell(cluster, "COMPLETING", RESTART + 1)
    for ending in (Ending("stopped", "SIGTERM"), Ending("cut"), Ending("crashed")):
        assert decide_after_torchrun(ending, "SIGTERM", NEAR).by == "slurm"


def test_a_cancelled_job_stays_away(cluster: Cluster) -> None:
    tell(cluster, "COMPLETING")
    for ending in (Ending("stopped", "SIGTERM"), Ending("cut")):
        assert decide_after_torchrun(ending, "SIGTERM", NEAR) == RequeueDecision(
            "cancelled", "nobody"
        )


def test_a_crash_is_nobodys_to_requeue_whatever_comes_beside_it(cluster: Cluster) -> None:
    tell(cluster, more="PreemptTime=1795410000")
    assert decide_after_torchrun(Ending("crashed", "ValueError"), "SIGUSR2", NEAR).by == "nobody"


def test_a_process_killed_where_all_nodes_answer_is_a_crash(cluster: Cluster) -> None:
    tell(cluster)
    cluster.say("srun", "")
    assert nodes_answer()
    assert decide_after_torchrun(Ending("cut", LOST), "", NEAR) == RequeueDecision(LOST, "nobody")


def test_a_node_that_does_not_answer_is_lost(cluster: Cluster) -> None:
    tell(cluster)
    cluster.say("srun", "", code=1)
    assert not nodes_answer()
    assert decide_after_torchrun(Ending("cut", LOST), "", NEAR) == RequeueDecision(
        "node lost", "we"
    )


def test_a_crash_just_before_the_limit_is_not_taken_for_it(cluster: Cluster) -> None:
    cluster.say("scontrol", f"JobState=RUNNING Restarts={RESTART} EndTime=1 PreemptTime=None")
    cluster.say("srun", "")
    assert decide_after_torchrun(Ending("cut"), "", NEAR).by == "nobody"
    assert decide_after_torchrun(Ending("stopped", "SIGUSR2"), "SIGUSR2", NEAR) == RequeueDecision(
        "time limit", "we"
    )


def test_the_scripts_exit_code(
    cluster: Cluster, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(cluster)
    cluster.say("srun", "")
    status(run, "finished")
    assert finish_job(run, "", 1, signal_before=NEAR) == 0  # torchrun may stumble at its own end
    status(run, "stopped", "SIGUSR1")
    assert finish_job(run, "SIGUSR1", 0, signal_before=NEAR) == 0
    assert not (run / "events.jsonl").exists()
    status(run, "failed", "ValueError: x")
    assert finish_job(run, "", 3, signal_before=NEAR) == 3
    assert "ValueError: x; job 77 is not requeued" in capsys.readouterr().out
    tell(cluster, more="PreemptTime=1795410000")
    status(run, "stopped", "preempted")
    assert finish_job(run, "SIGUSR2", 0, signal_before=NEAR) == 0
    (event,) = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["reason"], event["by"]) == ("requeued", "preempted", "we")
    assert json.loads((run / "status.json").read_text())["state"] == "queued"
