"""A run that is interrupted is noted as queued before its job is: nothing can come in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adafilter_dist.launch.requeue import RequeueDecision, requeue_run
from tests.launch.recorded import Cluster
from tests.shared.following import said, write_status


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has stopped and saved."""
    write_status(tmp_path / "run", "stopped", reason="preempted", step=30, attempt=2)
    return tmp_path / "run"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder))
    return found


def note_at_call(cluster: Cluster, run: Path, errors: str = "", code: int = 0) -> None:
    """An scontrol that keeps what was noted of the run when it was called."""
    lines = [
        "#!/bin/sh",
        f'echo "$*" >> {cluster.folder}/calls',
        *(f"/bin/cp {run / name} {cluster.folder}/{name}" for name in NOTES),
        f"echo '{errors}' >&2",
        f"exit {code}",
    ]
    (cluster.folder / "scontrol").write_text("\n".join(lines) + "\n")
    (cluster.folder / "scontrol").chmod(0o755)


NOTES = ("status.json", "events.jsonl")


def status(folder: Path) -> dict[str, object]:
    known: dict[str, object] = json.loads((folder / "status.json").read_text())
    return known


def events(folder: Path) -> list[dict[str, object]]:
    rows = (folder / "events.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(row).items() if k != "time"} for row in rows]


def test_first_noted_then_requeued(run: Path, cluster: Cluster) -> None:
    note_at_call(cluster, run)
    lines: list[str] = []
    assert requeue_run(run, "7779", RequeueDecision("preempted", "we"), lines.append)
    assert cluster.calls() == ["requeue 7779"]
    event = {"kind": "requeued", "reason": "preempted", "by": "we", "job": "7779"}
    for folder in (cluster.folder, run):  # when scontrol was called, and now
        assert (status(folder)["state"], status(folder)["reason"]) == ("queued", "preempted")
        assert events(folder) == [event]
    assert (status(run)["step"], status(run)["attempt"]) == (30, 2)
    assert lines == ["preempted: job 7779 was requeued and goes on from here"]


def test_where_slurm_refuses_the_run_is_stopped_again_with_the_reason(
    run: Path, cluster: Cluster
) -> None:
    note_at_call(cluster, run, "Requested operation is presently disabled", 1)
    lines: list[str] = []
    assert not requeue_run(run, "7779", RequeueDecision("time limit", "we"), lines.append)
    now = status(run)
    assert now["state"] == "stopped"
    assert now["reason"] == "time limit; Requested operation is presently disabled"
    assert [event["kind"] for event in events(run)] == ["requeued", "not_requeued"]
    assert events(run)[1]["error"] == "Requested operation is presently disabled"
    assert len(lines) == 1 and "does not requeue job 7779" in lines[0]
    assert said(run)[0] == "stopped"


def test_without_scontrol_too(run: Path, cluster: Cluster) -> None:
    assert not requeue_run(run, "7779", RequeueDecision("preempted", "we"), lambda line: None)
    assert status(run)["state"] == "stopped" and "scontrol" in str(status(run)["reason"])


def test_what_slurm_requeued_is_noted_and_not_asked_for_again(run: Path, cluster: Cluster) -> None:
    note_at_call(cluster, run)
    assert requeue_run(
        run, "7779", RequeueDecision("requeued by SLURM", "slurm"), lambda line: None
    )
    assert cluster.calls() == []
    assert (status(run)["state"], status(run)["reason"]) == ("queued", "requeued by SLURM")
    assert events(run)[0]["by"] == "slurm"


def test_what_nobody_requeues_stays_as_it_is(run: Path, cluster: Cluster) -> None:
    note_at_call(cluster, run)
    before = (run / "status.json").read_bytes()
    assert not requeue_run(run, "7779", RequeueDecision("cancelled", "nobody"), lambda line: None)
    assert (run / "status.json").read_bytes() == before
    assert not (run / "events.jsonl").exists() and cluster.calls() == []
