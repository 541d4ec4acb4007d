"""Runs in the background of this machine: one after the other, ended together, each told of."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adafilter_dist.launch import local
from adafilter_dist.status import read_run
from tests.shared.following import submit

CLONE = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start turns; what is left of them is ended."""
    started: list[int] = []

    def go(*turns: local.Turn) -> int:
        here = {"PYTHONPATH": str(CLONE)}
        started.append(local.start(turns, tmp_path / "plan.json", here))
        return started[-1]

    yield go
    for pid in started:
        if local.is_running(str(pid)):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def turn(run: Path, *lines: str) -> local.Turn:
    """A turn of a queued run that does what the lines say; its log lies in the run folder."""
    run.mkdir(exist_ok=True)
    (run / "status.json").write_text('{"state": "queued", "reason": "", "step": 7}')
    code = "\n".join(["import json, pathlib, signal, sys, time", f"run = {str(run)!r}", *lines])
    return local.Turn([sys.executable, "-u", "-c", code], str(run / "log"), str(run))


def claim(state: str) -> str:
    """The line by which a run notes that it was taken up."""
    return f"pathlib.Path(run, 'status.json').write_text(json.dumps({{'state': {state!r}}}))"


def until(condition: Callable[[], object], timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "late"
        time.sleep(0.05)


def status(run: Path) -> dict[str, object]:
    known: dict[str, object] = json.loads((run / "status.json").read_text())
    return known


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_one_after_the_other_in_order(tmp_path: Path, start: Callable[..., int]) -> None:
    runs = [tmp_path / name for name in "abc"]
    note = f"def note(s): open({str(tmp_path / 'order')!r}, 'a').write(pathlib.Path(run).name + s)"
    work = [note, claim("running"), "note('<')", "time.sleep(0.3)", "note('>')"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text("what was there\n")
    pid = start(*(turn(run, "print('hello')", *work, claim("finished")) for run in runs))
    assert local.is_running(str(pid))
    until(lambda: not local.is_running(str(pid)))
    assert text(tmp_path / "order") == "a<a>b<b>c<c>"
    assert text(tmp_path / "a" / "log") == "what was there\nhello\n"
    assert [status(run)["state"] for run in runs] == ["finished"] * 3


def test_a_term_ends_the_one_that_runs_and_those_that_wait(
    tmp_path: Path, start: Callable[..., int]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    saves = [
        *("def save(*_):", f"    {claim('stopped')}", "    print('saved')", "    sys.exit(75)"),
        *("signal.signal(signal.SIGTERM, save)", claim("running"), "print('runs')"),
        "time.sleep(60)",
    ]
    pid = start(turn(first, *saves), turn(second, "print('never')"))
    until(lambda: "runs" in text(first / "log"))
    os.kill(pid, signal.SIGTERM)
    until(lambda: not local.is_running(str(pid)))
    assert text(first / "log") == "runs\nsaved\n"
    assert status(first) == {"state": "stopped"}
    assert not (second / "log").read_bytes() if (second / "log").exists() else True
    now = status(second)
    assert (now["state"], now["reason"], now["step"]) == ("stopped", "cancelled before it began", 7)


def test_one_that_ends_before_it_began_is_told_of_and_the_next_runs(
    tmp_path: Path, start: Callable[..., int]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pid = start(turn(first, "sys.exit('no such thing')"), turn(second, claim("finished")))
    until(lambda: not local.is_running(str(pid)))
    assert status(first)["state"] == "failed"
    assert status(first)["reason"] == f"exit code 1 before it began; see {first / 'log'}"
    assert text(first / "log") == "no such thing\n"
    assert status(second) == {"state": "finished"}


@pytest.mark.slow
def test_it_outlives_the_process_that_submitted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    work = turn(run, "time.sleep(1)", claim("finished"))
    submits = (
        "import sys, pathlib; from adafilter_dist.launch import local; "
        f"print(local.start([local.Turn({work.command!r}, {work.log!r}, {work.run!r})], "
        f"pathlib.Path({str(tmp_path / 'plan.json')!r}), {{}}))"
    )
    done = os.popen(f"cd {CLONE} && {shlex.quote(sys.executable)} -c {shlex.quote(submits)}")
    pid = done.read().strip()
    assert local.is_running(pid)
    until(lambda: not local.is_running(pid))
    assert status(run) == {"state": "finished"}


def test_only_its_own_processes_are_taken_for_one() -> None:
    assert not local.is_running(str(os.getpid()))
    assert not local.is_running("4194305")
    assert not local.is_running("none")


def test_a_run_that_waits_for_its_turn_is_queued_and_not_lost(
    tmp_path: Path, start: Callable[..., int]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pid = start(turn(first, claim("running"), "time.sleep(60)"), turn(second, "pass"))
    submit(second, job=str(pid), cluster="local")
    hour = time.time() + 3600
    assert read_run(second, now=hour).state == "queued"
    os.kill(pid, signal.SIGKILL)  # nobody is left who could start it
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    found = read_run(second, now=hour)
    assert found.state == "lost" and str(pid) in found.reason
    # Of another machine's processes nothing is known here.
    known = json.loads((second / "submitted.json").read_text())
    (second / "submitted.json").write_text(json.dumps(known | {"host": "another"}))
    assert read_run(second, now=hour).state == "queued"
    for child in first.glob("*"):
        child.unlink()
