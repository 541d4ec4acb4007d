"""What is made of the words of squeue and sacct, and of their silence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from adafilter_dist.slurm.queue import Queue, QueuedJob, hosts, jobs
from tests.launch.recorded import NO_ACCOUNTING, SACCT, SQUEUE, UNABLE, UNKNOWN, Cluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A machine on which SLURM says what was recorded, and nothing else is installed."""
    found = Cluster(tmp_path / "bin")
    found.say("squeue", SQUEUE)
    found.say("sacct", SACCT)
    monkeypatch.setenv("PATH", str(found.folder))
    return found


def known(*names: str) -> list[QueuedJob]:
    found = jobs(names)
    assert found is not None
    return [found[name] for name in names]


def test_running_pending_ended(cluster: Cluster) -> None:
    running, pending, failed = known("6692", "6693", "6703")
    assert running == QueuedJob("6692", "6692", "RUNNING", "", ("n1", "n2"), 1795409515.0)
    assert pending == QueuedJob("6693", "6693", "PENDING", "Resources", (), 1795410115.0)
    assert failed.state_text == "FAILED (NonZeroExitCode)" and failed.nodes == ("n2",)
    assert [job.pending for job in (running, pending, failed)] == [False, True, False]
    assert [job.running for job in (running, pending, failed)] == [True, False, False]
    assert [job.ended for job in (running, pending, failed)] == [False, False, True]


def test_members_of_arrays_have_numbers_of_their_own(cluster: Cluster) -> None:
    first, second = known("6712_1", "6712_2")
    assert (first.number, first.state) == ("6713", "RUNNING")
    assert (second.number, second.state) == ("6712", "PENDING")
    assert known("6713") == [first]


def test_requeued_jobs(cluster: Cluster) -> None:
    ending, held = known("6716", "6714")
    assert ending.running and ending.state == "COMPLETING"
    assert held.pending and held.why == "job requeued in held state (scontrol release 6714)"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("6693", "Resources (waiting for free nodes)"),
        ("6694", "Priority (behind jobs of higher priority)"),
        ("6697", "JobHeldUser (held: scontrol release 6697)"),
        ("6698_1", "JobHeldUser (held: scontrol release 6698_1)"),
        (
            "6707",
            "ReqNodeNotAvail, UnavailableNodes:n1 (nodes are down, drained or reserved)",
        ),
        (
            "6705",
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
        ),
        ("6717", ""),
    ],
)
def test_why_a_job_waits(cluster: Cluster, name: str, why: str) -> None:
    (job,) = known(name)
    assert job.why == why


def test_a_limit_of_an_account() -> None:
    job = QueuedJob("1", "1", "PENDING", "QOSMaxGRESPerUser")
    assert job.why == "QOSMaxGRESPerUser (a limit of the account or QOS)"


def test_a_cancelled_job_has_no_reason_of_its_own(cluster: Cluster) -> None:
    assert known("6699")[0].state_text == "CANCELLED"


def test_one_call_for_all_and_one_for_those_forgotten(cluster: Cluster) -> None:
    found = jobs(["6692", "6698_3", "6704", "4711", "6693"])
    assert found is not None and sorted(found) == ["6692", "6693", "6698_3", "6704"]
    assert found["6704"].state_text == "FAILED (signal 9)"
    assert found["6698_3"] == QueuedJob("6698_3", "6701", "COMPLETED", "", ("n2",), 1795409557.0)
    squeue, sacct = cluster.calls()
    assert squeue.endswith(" -j 4711,6692,6693,6698_3,6704")
    assert sacct.endswith(" -j 4711,6698_3,6704")


def test_what_accounting_says_of_how_jobs_ended(cluster: Cluster) -> None:
    cluster.say("squeue", "", UNKNOWN, 1)
    cancelled, failed, unlaunched = known("6692", "6703", "6706")
    assert (cancelled.state_text, failed.state_text) == ("CANCELLED", "FAILED (exit code 3)")
    assert unlaunched.state_text.startswith("FAILED (could not be launched")
    # It calls a job pending that the controller has never heard of: its end was missed.
    assert jobs(["6705"]) == {}


def test_without_accounting_forgotten_jobs_are_unknown(cluster: Cluster) -> None:
    cluster.say("squeue", "", UNKNOWN, 1)
    cluster.say("sacct", "", NO_ACCOUNTING, 1)
    assert jobs(["6703"]) == {}
    (cluster.folder / "sacct").unlink()
    assert jobs(["6703"]) == {}


def test_only_ids_are_asked_for(cluster: Cluster) -> None:
    assert jobs(["", "abc", "12;13", "-u root", "6698_[0-3]"]) == {}
    assert cluster.calls() == []


def test_a_controller_that_is_down(cluster: Cluster) -> None:
    cluster.say("squeue", "", UNABLE, 1)
    assert jobs(["6692"]) is None
    queue = Queue()
    assert queue.look(["6692"]) == {}
    assert queue.trouble.startswith("squeue says: slurm_load_jobs error: Unable to contact")


def test_no_squeue_here(cluster: Cluster) -> None:
    (cluster.folder / "squeue").unlink()
    queue = Queue()
    assert queue.look(["6692"]) == {} and queue.trouble == "no squeue here"
    (cluster.folder / "squeue").write_text("not executable")
    assert queue.look(["6692"]) == {} and queue.trouble == "squeue: Permission denied"
    cluster.say("squeue", SQUEUE)
    assert queue.look(["6692"])["6692"] is not None and queue.trouble == ""


@pytest.mark.slow
def test_no_answer(cluster: Cluster) -> None:
    cluster.hang("squeue")
    queue, begun = Queue(timeout=1.0), time.monotonic()
    assert queue.look(["6692"]) == {}
    assert time.monotonic() - begun < 5
    assert queue.trouble == "squeue gave no answer within 1 s"
    cluster.say("squeue", SQUEUE)
    cluster.hang("sacct")
    found = queue.look(["6692", "6703", "4711"])
    assert found["6703"] is not None and found["4711"] is None and queue.trouble == ""


def test_slurm_is_left_in_peace(cluster: Cluster) -> None:
    queue = Queue(every=60.0)
    assert queue.look(["6692"])["6692"] is not None
    assert "6693" not in queue.look(["6692", "6693"])  # not asked for yet, nor said to be unknown
    assert len(cluster.calls()) == 1


def test_accounting_is_asked_once_about_a_job(cluster: Cluster) -> None:
    queue = Queue()
    for _ in range(3):
        assert queue.look(["6704", "4711"])["6704"] is not None
    assert [call.split()[0] for call in cluster.calls()] == ["squeue", "sacct"]
    assert queue.look(["6704", "4712"], past=[])["4712"] is None
    assert [call.split()[0] for call in cluster.calls()] == ["squeue", "sacct", "squeue"]


def test_the_settings_of_users_do_not_reach_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = cluster.folder / "squeue"
    script.write_text('#!/bin/sh\necho "1|1|RUNNING|$SLURM_TIME_FORMAT|n1|<$SQUEUE_STATES>"\n')
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    found = Queue().look(["1"])["1"]
    assert found is not None and found.reason == "<>" and found.start is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-2]", ["n1", "n2"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("gpu-a[1]-x,b", ["gpu-a1-x", "b"]),
    ],
)
def test_hosts(said: str, meant: list[str]) -> None:
    assert list(hosts(said)) == meant
