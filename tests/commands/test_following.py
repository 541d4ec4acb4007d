"""``adafilter status`` of runs that SLURM has: queued, started, requeued, cancelled, lost."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.commands import status as status_command
from adafilter_dist.metrics import append
from adafilter_dist.slurm.queue import Queue
from adafilter_dist.status import read_run
from adafilter_dist.system import files
from tests.launch.recorded import UNABLE, UNKNOWN, Cluster
from tests.shared.following import JOB, attempt, note, read, said, submit, write_status

CLONE = Path(__file__).parents[2]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """SLURM as it is told to be, without accounting."""
    found = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo" / "0123abcd"
    submit(folder)
    return folder


def job(state: str, reason: str = "None", nodes: str = "", start: float | None = None) -> str:
    """A line of squeue's."""
    begun = "N/A" if start is None else f"{start:.0f}"
    return f"{JOB}|{JOB}|{state}|{begun}|{nodes}|{reason}\n"


def test_queued(run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.say("squeue", job("PENDING", "Priority", start=time.time() + 9000))
    found = read(run)
    assert (found.state, found.slurm, found.nodes, found.job) == ("queued", "PENDING", [], JOB)
    assert found.reason == "Priority (behind jobs of higher priority)"
    assert found.starts_in is not None and 8900 < found.starts_in <= 9001
    assert main(["status", str(run.parent)]) == 0
    assert "priority), expected to start in 2.5 h\n" in capsys.readouterr().out
    cluster.say("squeue", job("PENDING"))
    assert said(run) == ("queued", "")
    cluster.say("squeue", job("CONFIGURING", nodes="n1"))
    assert said(run) == ("queued", "its nodes are being made ready")
    assert main(["status", str(run)]) == 0
    assert f"{JOB}, CONFIGURING" in capsys.readouterr().out


def test_started_but_not_heard_of_yet(run: Path, cluster: Cluster) -> None:
    cluster.say("squeue", job("RUNNING", nodes="n[1-2]", start=time.time() + 3))
    found = read(run)
    assert (found.state, found.reason, found.nodes) == ("running", "starting", ["n1", "n2"])


def test_running(run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(run)
    cluster.say("squeue", job("RUNNING", nodes="n[1-8]", start=time.time() - 60))
    assert said(run) == ("running", "on n1")
    assert main(["status", str(run.parent)]) == 0
    assert f"n1 +7  {JOB}" in capsys.readouterr().out
    cluster.say("squeue", job("SUSPENDED", nodes="n1"))
    assert said(run) == ("stalled", "suspended by SLURM")
    assert read_run(run).nodes == ["n1"]  # without SLURM, where its first rank is


def test_one_call_for_all_runs(tmp_path: Path, cluster: Cluster) -> None:
    cluster.say("squeue", job("PENDING", "Resources"))
    for number in range(3):
        submit(tmp_path / "runs" / f"{number}", job=f"{JOB}_{number}")
    submit(tmp_path / "runs" / "by-itself", job="123", cluster="local")
    submit(tmp_path / "runs" / "done")
    write_status(tmp_path / "runs" / "done", "finished")
    assert main(["status", str(tmp_path / "runs")]) == 0
    asked = [call for call in cluster.calls() if call.startswith("squeue")]
    assert [call.split("-j ")[1] for call in asked] == [",".join(f"{JOB}_{n}" for n in range(3))]


@pytest.mark.parametrize("trouble", ["missing", "down", "silent"])
def test_without_slurm_the_folders_tell(
    run: Path,
    cluster: Cluster,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(status_command, "Queue", partial(Queue, timeout=0.5))
    if trouble == "down":
        cluster.say("squeue", "", UNABLE, 1)
    elif trouble == "silent":
        cluster.hang("squeue")
    assert main(["status", str(run.parent)]) == 0
    out, errors = capsys.readouterr()
    assert f"queued  -     -      -       -         0         0     -      {JOB}" in out
    (line,) = errors.splitlines()
    assert line.startswith("SLURM was not asked: ")
    assert {"missing": "no squeue here", "down": "Unable to contact", "silent": "no answer"}[
        trouble
    ] in line


def test_cancelled_or_failed_before_it_began(
    run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.say("squeue", job("CANCELLED", "Priority"))
    assert said(run) == ("cancelled", "while it was queued")
    cluster.say("squeue", job("FAILED", "JobLaunchFailure", "n2"))
    found = read(run)
    assert found.state == "failed" and found.failure is None and found.nodes == ["n2"]
    assert found.reason == f"job {JOB} ended before the run went on: FAILED (JobLaunchFailure)"
    (run / "submitted" / "0.log").write_text("module: command not found\n")
    assert main(["status", str(run.parent)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"job {JOB}: module: command not found")


def test_lost(run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.say("squeue", "", UNKNOWN, 1)
    assert said(run) == ("lost", f"SLURM no longer knows job {JOB}")
    assert main(["status", str(run)]) == 0
    assert f"adafilter resume {run}" in capsys.readouterr().out
    cluster.say("sacct", f"{JOB}|{JOB}|CANCELLED by 1000|0:0|None|None assigned\n")
    assert said(run) == ("cancelled", "while it was queued")


def test_a_local_one_that_never_began(tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(run, job="4194305", cluster="local")  # above what process ids can be
    assert said(run) == ("queued", "")
    write_status(run, "queued", heartbeat=time.time() - 100)
    assert said(run) == ("lost", "there is no process 4194305 on this machine")


@pytest.mark.parametrize("silent", [20.0, 300.0])
def test_a_killed_run_that_slurm_starts_again_is_queued(
    run: Path, cluster: Cluster, silent: float
) -> None:
    attempt(run, silent=silent)
    cluster.say("squeue", job("PENDING", "BeginTime", start=time.time() + 110.5))
    found = read(run)
    assert (found.state, found.slurm, found.nodes) == ("queued", "PENDING", [])
    assert found.reason == "requeued; BeginTime (SLURM waits before it starts the job)"
    assert found.attempts[0].how.startswith("killed") and found.resume is None
    begun = job("RUNNING", nodes="n2", start=time.time() + 1)
    cluster.say("squeue", begun)
    assert read(run).state == "running"


def test_our_own_requeue_keeps_its_reason(run: Path, cluster: Cluster) -> None:
    attempt(run).end("stopped", "preempted", 30)
    write_status(run, "queued", reason="preempted", attempt=1)
    cluster.say("squeue", job("COMPLETING", nodes="n1", start=time.time() - 100))
    assert said(run) == ("queued", "preempted")
    cluster.say("squeue", job("PENDING", "Resources"))
    assert said(run) == ("queued", "preempted; Resources (waiting for free nodes)")


def test_submitted_again_after_an_attempt(run: Path, cluster: Cluster) -> None:
    attempt(run, silent=300)
    time.sleep(0.01)
    write_status(run, "queued")  # as submission writes it, which knows of no attempt
    cluster.say("squeue", job("PENDING", "Resources"))
    assert read_run(run).state == "queued"
    assert said(run) == ("queued", "requeued; Resources (waiting for free nodes)")


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_what_ended_and_is_started_again(run: Path, cluster: Cluster, state: str) -> None:
    attempt(run).end(state, "because", 30)
    write_status(run, state, reason="because", attempt=1)
    cluster.say("squeue", job("RUNNING", nodes="n1", start=time.time() - 60))
    assert said(run) == (state, "because")
    cluster.say("squeue", job("PENDING", "Resources"))
    assert said(run)[0] == "queued"
    cluster.say("squeue", job("RUNNING", nodes="n1", start=time.time() + 1))
    assert said(run) == ("running", "starting")
    cluster.say("squeue", "", UNKNOWN, 1)
    assert said(run) == (state, "because")


def test_the_end_of_its_job_ends_the_wait_for_its_process(run: Path, cluster: Cluster) -> None:
    attempt(run, silent=5)
    cluster.say("squeue", job("TIMEOUT", "TimeLimit", "n1"))
    assert said(run) == ("killed", "its job ended: TIMEOUT (TimeLimit)")
    attempt(run, job=None)  # somebody goes on with it by hand
    assert said(run) == ("running", "on n1")


def test_one_that_runs_in_a_job_which_did_not_submit_it(run: Path, cluster: Cluster) -> None:
    (run / "submitted.json").unlink()
    attempt(run, silent=300)
    cluster.say("squeue", job("PENDING", "BeginTime"))
    found = read(run)
    assert (found.state, found.job) == ("queued", JOB)


def test_finished_is_finished(run: Path, cluster: Cluster) -> None:
    write_status(run, "finished")
    cluster.say("squeue", job("FAILED"))
    assert said(run) == ("finished", "")
    assert cluster.calls() == []


def test_the_rank_that_failed_first(
    run: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(run).end("failed", "RankError: rank 0 lost another rank", 30)
    write_status(run, "failed", reason="RankError: rank 0 lost another rank", attempt=1)
    note(run, 1, 2, 100.5, "Traceback", "ValueError: later")
    note(run, 1, 3, 100.25, "Traceback", "  in forward", "ValueError: a bug")
    (run / "attempts" / "1" / "failed.0.json").write_text("{")
    cluster.say("squeue", job("FAILED", "NonZeroExitCode"))
    assert main(["status", str(run.parent)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("rank 3 on n3: ValueError: a bug")
    assert main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert "rank 3 on n3 failed first:\n    Traceback\n      in forward\n    ValueError" in out
    assert f"adafilter logs {run} --rank 3" in out
    assert main(["status", str(run), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["failure"]["rank"] == 3 and found["failure"]["error"][-1] == "ValueError: a bug"


SRUN = """\
srun: error: n2: task 3: {how}
srun: launch/slurm: _step_signal: Terminating StepId=6692.0
slurmstepd-n1: error: *** STEP 6692.0 ON n1 CANCELLED AT 2026-11-23T04:56:15 ***
srun: error: n2: task 2: Terminated
srun: error: n1: tasks 0-1: Terminated
srun: Force Terminated StepId=6692.0
"""
PREEMPTED = """\
slurmstepd-n1: error: *** STEP 6692.0 ON n1 CANCELLED AT 2026-11-23T04:56:15 DUE TO PREEMPTION ***
srun: error: n1: tasks 0-1: Killed
"""


@pytest.mark.parametrize("how", ["Exited with exit code 1", "Killed", "Segmentation fault"])
def test_a_rank_that_could_not_say_anything(run: Path, cluster: Cluster, how: str) -> None:
    attempt(run, silent=300)
    logs = run / "submitted"
    (logs / "0.log").write_text(f"epoch 1\n{SRUN.format(how=how)}")
    (logs / "3.log").write_text("".join(f"line {n}\n" for n in range(100)))
    cluster.say("squeue", job("FAILED", "NonZeroExitCode"))
    found = read(run)
    assert (found.state, said(run)[1]) == (
        "killed",
        "its process is gone; its job ended: FAILED (NonZeroExitCode)",
    )
    assert found.failure is not None
    assert (found.failure.rank, found.failure.host) == (3, "n2")
    assert found.failure.error == [*(f"line {n}" for n in range(86, 100)), how]


def test_what_slurm_ended_no_rank_has_failed(run: Path, cluster: Cluster) -> None:
    attempt(run, silent=300)
    log = run / "submitted" / "0.log"
    log.write_text(PREEMPTED)
    assert read_run(run).failure is None
    log.write_text(SRUN.format(how="Killed") + "going on from step 20 (x)\nepoch 2\n" + PREEMPTED)
    assert read_run(run).failure is None


@pytest.mark.parametrize("content", ["", "{}", '{"job": 7}', "[]", '{"cluster": "slurm"}', "\x00"])
def test_a_damaged_submission(
    run: Path, cluster: Cluster, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "submitted.json").write_text(content)
    assert main(["status", str(run.parent)]) == 0
    assert ("submitted.json is damaged" in capsys.readouterr().out) == (content != "{}")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four members: two finished, one queued, one that has no folder yet.

    Of the finished, the first is better on the validation set, the second on the test set.
    """
    folder = tmp_path / "sweeps" / "lr"
    folder.mkdir(parents=True)
    members = []
    for number, (lr, state, val, test) in enumerate(
        [
            (0.02, "finished", 0.625, 0.75),
            (0.01, "finished", 0.5, 0.875),
            (0.03, "queued", 0.9, 0.9),
            (1, "", 0, 0),
        ]
    ):
        run = tmp_path / "runs" / f"{number}"
        if state:
            submit(run, job=f"{JOB}_{number}")
            write_status(run, state)
            for split, top1 in (("val", val), ("val", val / 2), ("test", test)):
                append(run / "metrics.jsonl", {"kind": "evaluation", "split": split, "top1": top1})
        place = str(run) if number else f"../../runs/{number}"
        members.append({"run": place, "values": {"optim.lr": lr, "model.name": "resnet18"}})
    content: dict[str, Any] = {"key": ["optim.lr", "model.name"], "members": members}
    files.write_json(folder / "sweep.json", content)
    return folder


def test_a_sweep(sweep: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.say("squeue", f"{JOB}_2|{JOB}|PENDING|N/A||JobArrayTaskLimit\n")
    assert main(["status", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:5]] == [
        ["optim.lr", "model.name", "STATE"],
        ["0.02", "resnet18", "finished"],
        ["0.01", "resnet18", "finished"],
        ["0.03", "resnet18", "queued"],
        ["1", "resnet18", "unknown"],
    ]
    assert "JobArrayTaskLimit (as many of the array run as may at once)" in lines[3]
    assert lines[4].endswith("no such folder")
    assert lines[5].startswith(
        "4 members: 2 finished, 1 queued, 1 unknown; best of the finished by validation (*): "
        "optim.lr=0.02 model.name=resnet18, val top-1 62.5 %, test top-1 75.0 % ("
    )
    assert "62.5 % *" in lines[1] and "75.0 %" in lines[1]
    assert "50.0 % " in lines[2] and "87.5 %" in lines[2]
    assert sum(" * " in line for line in lines[:5]) == 1
    assert len(lines) == 6
    assert main(["status", "--json", str(sweep)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[1]["values"] == {"optim.lr": 0.01, "model.name": "resnet18"}
    assert main(["status", str(sweep), str(sweep.parents[1] / "runs")]) == 0
    assert capsys.readouterr().out.splitlines()[7].startswith("RUN ")


def test_the_test_set_never_names_the_best_of_a_sweep(
    sweep: Path, no_slurm: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one finished member nothing is known but its accuracy on the test set."""
    rows = sweep.parents[1] / "runs" / "1" / "metrics.jsonl"
    rows.write_text('{"kind":"evaluation","split":"test","top1":0.99}\n')
    assert main(["status", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "best of" not in out and "*" not in out
    assert "no best is named" in out and "the test set must not choose" in out


def test_a_damaged_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", "[]", '{"key": 1}', '{"key": ["a"], "members": [{"run": 3}]}'):
        (sweep / "sweep.json").write_text(content)
        assert main(["status", str(sweep)]) == 2
        assert f"{sweep / 'sweep.json'}: is damaged" in capsys.readouterr().err


def watching(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "adafilter_dist", "status", *words],
        env=os.environ | {"PYTHONPATH": str(CLONE), "COLUMNS": "60", "TERM": "xterm"},
        text=True,
        **options,
    )


@pytest.mark.slow
def test_watching_prints_what_changed(run: Path, cluster: Cluster) -> None:
    cluster.say("squeue", job("PENDING", "Resources", start=time.time() + 100))
    process = watching("--watch", "0.1", str(run.parent), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("RUN ")
        assert "Resources" in process.stdout.readline()
        assert process.stdout.readline() == "\n"
        assert not select.select([process.stdout], [], [], 1.5)[0]  # only the time is new
        attempt(run)  # not all at once: it may be seen without its status first
        shown = iter(process.stdout.readline, "")
        assert any(" running " in line for line in shown)  # though SLURM's last word was: pending
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in rest
    assert len([call for call in cluster.calls() if call.startswith("squeue")]) == 1


def test_watching_at_a_terminal(run: Path, cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    process = watching("--watch", str(run.parent), stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while b"SLURM was not asked: no squeue here" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=150) == 0
        try:
            while block := os.read(ours, 4096):
                seen += block
        except OSError:  # the other end is closed
            pass
    finally:
        process.kill()
        os.close(ours)
    assert b"\x1b[?25h" in seen  # the cursor is back
    assert b"Traceback" not in seen


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_watching_needs_a_time(run: Path, seconds: str) -> None:
    assert main(["status", str(run), f"--watch={seconds}"]) == 2
    assert main(["status", str(run), "--watch", "--json"]) == 2
