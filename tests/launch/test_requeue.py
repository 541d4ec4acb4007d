"""Who starts a job again: every row of the table, with what a real SLURM 22.05.8 printed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from adafilter_dist.launch.requeue import (
    RequeueDecision,
    claim_requeue,
    decide_for_own_job,
    decide_requeue,
    requeue,
    show_grace,
    show_job,
)
from adafilter_dist.slurm.environment import own_job
from adafilter_dist.training.preemption import TIME_LIMIT
from tests.launch.recorded import Cluster

NOW = 1795409900
NEAR = 120.0
FAR = str(NOW + 7200)


def verdict(
    state: str, signal: str = "SIGTERM", restart: int = 0, **fields: str
) -> RequeueDecision:
    known = {"Restarts": "0", "Reason": "None", "PreemptTime": "None", "EndTime": FAR} | fields
    return decide_requeue(
        {"JobState": state, **known}, restart=restart, signal=signal, signal_before=NEAR, now=NOW
    )


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING", "COMPLETING", "PENDING", "NODE_FAIL"])
def test_where_restarts_has_grown_slurm_has_requeued_it(state: str) -> None:
    assert verdict(state, Restarts="1") == RequeueDecision("requeued by SLURM", "slurm")
    # Also where something else is true beside it: a preemption without grace, a limit.
    assert verdict(state, Restarts="1", Reason="TimeLimit", PreemptTime=str(NOW)).by == "slurm"
    assert verdict(state, TIME_LIMIT, Restarts="3", restart=2).by == "slurm"


def test_restarts_that_were_there_before_this_start_say_nothing() -> None:
    assert verdict("COMPLETING", Restarts="2", restart=2).by == "nobody"
    assert verdict("RUNNING", "SIGUSR2", Restarts="2", restart=2, PreemptTime=str(NOW)).by == "we"


@pytest.mark.parametrize("state", ["COMPLETING", "TIMEOUT"])
def test_a_time_limit_that_is_over_is_ours(state: str) -> None:
    assert verdict(state, Reason="TimeLimit") == RequeueDecision(TIME_LIMIT, "we")
    assert verdict("TIMEOUT") == RequeueDecision(TIME_LIMIT, "we")


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR2", "SIGUSR1"])
def test_scancel_is_nobodys(state: str, signal: str) -> None:
    assert verdict(state, signal) == RequeueDecision("cancelled", "nobody")


# COMPLETING: where a partition has PreemptMode=CANCEL and no grace.
@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING", "COMPLETING"])
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR2"])
def test_a_preemption_is_ours_unless_slurm_requeues(state: str, signal: str) -> None:
    assert verdict(state, signal, PreemptTime=str(NOW)) == RequeueDecision("preempted", "we")


@pytest.mark.parametrize("said", ["None", "Unknown", "N/A", "", "NONE", "2026-11-23T05:00:00"])
def test_a_preempt_time_that_is_none(said: str) -> None:
    assert verdict("RUNNING", "SIGUSR2", PreemptTime=said).reason == "SIGUSR2"


def test_a_preempt_time_that_is_not_there() -> None:
    fields = {"JobState": "RUNNING", "EndTime": FAR}
    found = decide_requeue(fields, restart=0, signal="SIGTERM", signal_before=NEAR, now=NOW)
    assert found == RequeueDecision("SIGTERM", "we")


def test_a_limit_is_near_where_slurm_would_have_signalled() -> None:
    # It looks at limits every half minute only.
    assert verdict("RUNNING", "SIGUSR2", EndTime=str(NOW + 119)) == RequeueDecision(
        TIME_LIMIT, "we"
    )
    assert verdict("RUNNING", "SIGUSR2", EndTime=str(NOW + 179)).reason == TIME_LIMIT
    assert verdict("RUNNING", "SIGUSR2", EndTime=str(NOW + 181)).reason == "SIGUSR2"
    assert verdict("SIGNALING", "SIGUSR2", EndTime=str(NOW + 60)).reason == TIME_LIMIT


def test_the_flag_that_rose_by_itself_is_the_time_limit() -> None:
    assert verdict("RUNNING", TIME_LIMIT) == RequeueDecision(TIME_LIMIT, "we")


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING"])
def test_a_signal_by_hand(state: str) -> None:
    assert verdict(state, "SIGUSR1") == RequeueDecision("SIGUSR1", "nobody")
    assert verdict(state, "SIGINT") == RequeueDecision("SIGINT", "nobody")
    assert verdict(state, "SIGUSR2") == RequeueDecision("SIGUSR2", "we")
    assert verdict(state, "SIGTERM") == RequeueDecision("SIGTERM", "we")
    # A preemption that comes to a site's USR1 is one all the same.
    assert verdict(state, "SIGUSR1", PreemptTime=str(NOW)).reason == "preempted"


SHOWN = (
    "JobId=7779 JobName=small UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=100 Nice=0 "
    "Account=(null) QOS=(null) JobState={state} Reason={reason} Dependency=(null) Requeue=1 "
    "Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:31 TimeLimit=00:10:00 "
    "TimeMin=N/A SubmitTime=1795409800 EligibleTime=1795409800 AccrueTime=1795409800 "
    "StartTime=1795409800 EndTime=1795410400 Deadline=N/A PreemptEligibleTime=1795409800 "
    "PreemptTime={preempt} SuspendTime=None SecsPreSuspend=0 LastSchedEval=1795409800 "
    "Scheduler=Main Partition=low AllocNode:Sid=login:123 NodeList=n[1-2] BatchHost=n1 "
    "Comment=JobState=FAILED Power= \n"
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A machine where scontrol says what a test wants, and this process is a job's."""
    found = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder))
    monkeypatch.setenv("SLURM_JOB_ID", "7779")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return found


def shown(state: str = "RUNNING", reason: str = "None", restarts: int = 0, preempt: str = "None"):
    return SHOWN.format(state=state, reason=reason, restarts=restarts, preempt=preempt)


def test_the_fields_of_a_job_as_scontrol_shows_it(cluster: Cluster) -> None:
    cluster.say("scontrol", shown("COMPLETING", "TimeLimit", 2, "1795409870"))
    fields = show_job("7779")
    assert fields == {
        **{"JobState": "COMPLETING", "Reason": "TimeLimit", "Restarts": "2", "Partition": "low"},
        **{"PreemptTime": "1795409870", "EndTime": "1795410400"},
    }
    assert cluster.calls() == ["scontrol show job -o 7779"]


def test_the_job_asks_for_itself(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_job() == ("7779", 0)
    cluster.say("scontrol", shown(preempt="1795409870"))
    assert decide_for_own_job("SIGUSR2", NEAR) == RequeueDecision("preempted", "we")
    cluster.say("scontrol", shown("COMPLETING", restarts=1))
    assert decide_for_own_job("SIGTERM", NEAR).by == "slurm"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert own_job() == ("7779", 1)
    assert decide_for_own_job("SIGTERM", NEAR) == RequeueDecision("cancelled", "nobody")


def test_where_slurm_says_nothing_nobody_requeues(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.say("scontrol", "", "slurm_load_jobs error: Unable to contact slurm controller\n", 1)
    found = decide_for_own_job("SIGTERM", NEAR)
    assert found.by == "nobody" and "Unable to contact slurm controller" in found.reason
    (cluster.folder / "scontrol").unlink()
    assert decide_for_own_job("SIGTERM", NEAR).by == "nobody"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert decide_for_own_job("SIGTERM", NEAR) == RequeueDecision("SIGTERM", "nobody")


def test_a_silent_scontrol_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adafilter_dist.launch.requeue._ASK_SECONDS", 0.2)
    cluster.hang("scontrol")
    began = time.monotonic()
    assert "gave no answer" in decide_for_own_job("SIGTERM", NEAR).reason
    assert time.monotonic() - began < 10


def test_requeue_says_what_slurm_says(cluster: Cluster) -> None:
    cluster.say("scontrol", "")
    requeue("7779")
    assert cluster.calls() == ["scontrol requeue 7779"]
    cluster.say("scontrol", "", "Job is pending execution for job 7779\n", 1)
    with pytest.raises(OSError, match="Job is pending execution for job 7779"):
        requeue("7779")


def test_a_preemption_leaves_the_longer_of_grace_and_kill_wait(cluster: Cluster) -> None:
    cluster.say(
        "scontrol",
        "PartitionName=low AllowGroups=ALL GraceTime=90 Hidden=NO\nKillWait = 30 sec\n",
    )
    assert show_grace("low") == 90
    cluster.say("scontrol", "PartitionName=low GraceTime=0 Hidden=NO\nKillWait = 30 sec\n")
    assert show_grace("low") == 30
    cluster.say("scontrol", "", "invalid partition\n", 1)
    assert show_grace("low") is None


_CLAIMS = """
import sys
from pathlib import Path
from adafilter_dist.launch.requeue import claim_requeue
sys.stdin.readline()
print(claim_requeue(Path(sys.argv[1]), "7779", int(sys.argv[2])), flush=True)
"""


def test_of_eight_that_claim_at_once_one_requeues(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CLAIMS, str(tmp_path), "0"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=150)[0].strip() for process in processes]
    assert sorted(said) == ["False"] * 7 + ["True"]
    # Another start of the job, another job: claimed anew.
    assert claim_requeue(tmp_path, "7779", 1)
    assert claim_requeue(tmp_path, "7780", 0)
    assert not claim_requeue(tmp_path, "7779", 0)
