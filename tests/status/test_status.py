"""``adafilter status``: run folders in every state, whole and damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.metrics import JsonLines, append
from adafilter_dist.recipe import dump_recipe, load_recipe
from adafilter_dist.run.ownership import Ownership, this_process
from adafilter_dist.status import RunStatus, read_run
from adafilter_dist.system import files

CLONE = Path(__file__).parents[2]
OWN = """
import sys
from pathlib import Path
from adafilter_dist.run.ownership import claim
print(claim(Path(sys.argv[1])).attempt, flush=True)
sys.stdin.read()
"""
Claim = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def claimed_by() -> Iterator[Claim]:
    """Starts a process that claims a run and lives until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(run: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWN, str(run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(CLONE)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdecimal()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=150)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=150)


def status(run: Path, state: str = "running", **fields: Any) -> None:
    """As the trainer writes it, a moment ago."""
    known = {
        "state": state,
        "reason": "",
        "heartbeat": time.time(),
        "attempt": 1,
        "step": 30,
        "total_steps": 80,
        "epoch": 1,
        "epochs": 4,
        "phase": "training",
        "step_seconds": 0.5,
        "world_size": 2,
        "host": "vm",
        "pid": 1,
    }
    files.write_json(run / "status.json", known | fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run half-way, recorded as running; nobody has claimed it."""
    folder = tmp_path / "runs" / "demo" / "0123abcd"
    folder.mkdir(parents=True)
    files.write_text(folder / "recipe.yaml", dump_recipe(load_recipe(["recipe=demo"])))
    status(folder)
    rows = JsonLines(folder / "metrics.jsonl")
    head = {"kind": "train", "epoch": 0}
    rows.write(head | {"step": 10, "loss": 2.0, "images_per_second": 55.5})
    rows.write({"kind": "evaluation", "step": 20, "epoch": 0, "split": "val", "top1": 0.75})
    rows.write({"kind": "evaluation", "step": 40, "epoch": 1, "split": "val", "top1": 0.5})
    rows.write(head | {"step": 50, "loss": 1.25, "images_per_second": 66.5})
    rows.close()
    append(folder / "events.jsonl", event("start", "10:00:00", attempt=1, step=0, steps_lost=0))
    return folder


def event(kind: str, clock: str, **fields: Any) -> dict[str, Any]:
    return {"time": f"2026-11-23T{clock}.000+00:00", "kind": kind, **fields}


def elsewhere(run: Path, *, silent: float) -> None:
    """The run is another machine's, which gave its last sign of life ``silent`` seconds ago."""
    owner = replace(this_process(), attempt=1, host="far-away", machine="another boot")
    folder = run / "attempts" / "1"
    folder.mkdir(parents=True)
    files.write_json(folder / "owner.json", asdict(owner))
    (folder / "alive").touch()
    seen = time.time() - silent
    os.utime(folder / "alive", (seen, seen))


def said(found: RunStatus) -> tuple[str, str]:
    return found.state, found.reason


def test_figures_of_a_run(run: Path, claimed_by: Claim) -> None:
    claimed_by(run)
    found = read_run(run)
    assert said(found) == ("running", "")
    assert found.alive is True
    assert (found.step, found.total_steps, found.epoch, found.epochs) == (30, 80, 1, 4)
    assert (found.metric, found.value) == ("best val top-1", 0.75)
    assert (found.images_per_second, found.step_seconds, found.world_size) == (66.5, 0.5, 2)
    assert (found.restarts, found.steps_lost, found.resume) == (0, 0, None)
    assert found.heartbeat_age is not None and found.heartbeat_age < 60
    assert found.problems == []
    append(run / "metrics.jsonl", {"kind": "evaluation", "split": "test", "top1": 0.625})
    assert (read_run(run).metric, read_run(run).value) == ("test top-1", 0.625)


def test_without_an_evaluation_the_last_loss_is_told(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert read_run(run).metric is None
    append(run / "metrics.jsonl", {"kind": "train", "step": 5, "loss": 3.5})
    assert (read_run(run).metric, read_run(run).value) == ("loss", 3.5)


def test_killed(run: Path, claimed_by: Claim, capsys: pytest.CaptureFixture[str]) -> None:
    process = claimed_by(run)
    assert read_run(run).state == "running"
    kill(process)
    found = read_run(run)
    assert said(found) == ("killed", "its process is gone")
    assert found.resume == f"adafilter resume {run}"
    assert main(["status", str(run.parent)]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert "killed" in line and line.endswith(f"adafilter resume {run}")


def test_an_end_that_did_not_reach_status_json(run: Path, claimed_by: Claim) -> None:
    process = claimed_by(run)
    Ownership(run, 1).end("stopped", "TERM", 30)
    kill(process)
    assert said(read_run(run)) == ("stopped", "TERM")


@pytest.mark.parametrize("state", ["stopped", "finished", "failed", "queued"])
def test_what_is_recorded_stays_when_the_process_is_gone(
    run: Path, claimed_by: Claim, state: str
) -> None:
    kill(claimed_by(run))
    status(run, state, reason="because")
    found = read_run(run)
    assert said(found) == (state, "because")
    assert (found.resume is not None) == (state in ("stopped", "failed"))


def test_a_new_attempt_counts_before_its_first_status(run: Path, claimed_by: Claim) -> None:
    status(run, "stopped", reason="TERM")
    kill(claimed_by(run))
    process = claimed_by(run)
    found = read_run(run)
    assert said(found) == ("running", "starting")
    assert found.restarts == 1
    kill(process)
    assert read_run(run).state == "killed"


@pytest.mark.parametrize(
    ("age", "phase", "step_seconds", "state"),
    [
        (14.0, "training", 0.5, "running"),
        (17.0, "training", 0.5, "stalled"),
        (80.0, "training", 30.0, "running"),
        (95.0, "training", 30.0, "stalled"),
        (590.0, "evaluating", 0.5, "running"),
        (610.0, "evaluating", 0.5, "stalled"),
        (590.0, "starting", None, "running"),
    ],
)
def test_stalled(
    run: Path, claimed_by: Claim, age: float, phase: str, step_seconds: float, state: str
) -> None:
    claimed_by(run)
    status(run, phase=phase, step_seconds=step_seconds, heartbeat=1e9)
    found = read_run(run, now=1e9 + age)
    assert found.state == state
    assert found.heartbeat_age == age
    if state == "stalled":
        assert found.reason.startswith("no sign of progress for ")


def test_on_another_machine(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere(run, silent=30.0)
    assert said(read_run(run)) == ("running", "on far-away")
    main(["status", str(run.parent)])
    assert capsys.readouterr().out.splitlines()[1].endswith("on far-away")
    status(run, heartbeat=time.time() - 300)
    assert said(read_run(run)) == ("stalled", "no sign of progress for 5 min on far-away")


def test_the_lease_of_the_recipe_counts(run: Path) -> None:
    elsewhere(run, silent=90.0)
    assert read_run(run).state == "killed"
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}", "checkpoint.lease=10min"])
    files.write_text(run / "recipe.yaml", dump_recipe(recipe))
    assert read_run(run).state == "running"


def test_attempts_and_checkpoints(
    run: Path, claimed_by: Claim, capsys: pytest.CaptureFixture[str]
) -> None:
    kill(claimed_by(run))
    kill(claimed_by(run))
    append(run / "events.jsonl", event("start", "11:00:00", attempt=2, step=20, steps_lost=7))
    append(run / "events.jsonl", event("stopped", "11:30:00", step=25, reason="USR1"))
    claimed_by(run)
    append(run / "events.jsonl", event("start", "12:00:00", attempt=3, step=25, steps_lost=0))
    status(run, attempt=3)
    for step in (20, 25):
        folder = run / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 1_500_000)
    (run / "checkpoints" / ".step-000000030.3.tmp").mkdir()
    found = read_run(run)
    assert (found.restarts, found.steps_lost) == (2, 7)
    first, second, third = found.attempts
    assert (first.number, first.how, first.first_step) == (1, "killed", 0)
    assert first.end is not None
    assert (second.how, second.first_step, second.steps_lost) == ("stopped: USR1", 20, 7)
    assert (second.start, second.end) == (
        "2026-11-23T11:00:00.000+00:00",
        "2026-11-23T11:30:00.000+00:00",
    )
    assert (third.how, third.end) == ("running", None)
    assert [(c.step, c.size) for c in found.checkpoints] == [(20, 1_500_000), (25, 1_500_000)]
    assert main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert "2, 7 steps lost" in out
    assert "30/80" in out and "2/4" in out and "best val top-1 75.0 %" in out
    assert "stopped: USR1" in out and "2026-11-23 11:30:00" in out
    assert "step-000000025  25    1.5" in out
    assert "resume" not in out


def test_one_run_shows_how_to_go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_space = run.rename(run.with_name("of mine"))
    status(with_space, "stopped", reason="TERM")
    main(["status", str(with_space)])
    out = capsys.readouterr().out
    assert "stopped: TERM" in out
    assert f"adafilter resume '{with_space}'" in out


@pytest.mark.parametrize(
    "content",
    [b"", b'{"state": "runn', b"[1, 2]", b"\xff\x00\xff", b"null", b"[" * 100_000],
    ids=["empty", "half", "list", "bytes", "null", "deep"],
)
def test_a_damaged_status_is_said(
    run: Path, content: bytes, claimed_by: Claim, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "status.json").write_bytes(content)
    found = read_run(run)
    assert (found.state, found.problems) == ("unknown", ["status.json is damaged"])
    assert found.value == 0.75  # the rest is told all the same
    process = claimed_by(run)
    assert read_run(run).state == "running"
    kill(process)
    assert read_run(run).state == "killed"
    assert main(["status", str(run.parent)]) == 0
    assert "status.json is damaged" in capsys.readouterr().out


def test_values_of_the_wrong_kind(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"state": 7, "step": "x", "epoch": True, "attempt": [], "host": {}, "heartbeat": None}
    huge = '{"state": "failed", "reason": "\\ud800\\u001b[1m\\n", "step": 1' + "0" * 400 + "}"
    for content in (json.dumps(wrong), huge, '{"heartbeat": NaN, "step_seconds": Infinity}'):
        (run / "status.json").write_text(content)
        assert read_run(run).step is None
        assert main(["status", str(run.parent)]) == 0
        assert main(["status", str(run)]) == 0
        assert main(["status", str(run), "--json"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_damaged_rows_are_said_and_the_others_count(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\x00\x00\n7\n{"kind": "evaluation", "split": "val", "top1": 0.875}\n{"kind": ')
    found = read_run(run)
    assert found.value == 0.875
    assert found.problems == ["metrics.jsonl has 3 torn lines"]


def test_half_a_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_json(run / "status.json", {"state": "flying"})
    assert said(read_run(run)) == ("unknown", "status.json names no known state")
    (run / "status.json").unlink()
    (run / "metrics.jsonl").unlink()
    (run / "events.jsonl").unlink()
    assert said(read_run(run)) == ("unknown", "no status.json")
    (run / "metrics.jsonl").mkdir()
    (run / "attempts").write_text("no folder")
    assert len(read_run(run).problems) == 2
    assert main(["status", str(run.parent)]) == 0
    assert "metrics.jsonl cannot be read: Is a directory" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"pid": "x"}, {"host": 5}, {"attempt": "1"}, {"machine": []}])
def test_an_owner_of_the_wrong_kind(
    run: Path, claimed_by: Claim, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    kill(claimed_by(run))
    path = run / "attempts" / "1" / "owner.json"
    files.write_json(path, json.loads(path.read_text()) | wrong)
    assert main(["status", str(run)]) == 0
    assert "0123abcd" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_an_owner_that_cannot_be_read(run: Path, claimed_by: Claim, content: str) -> None:
    kill(claimed_by(run))
    (run / "attempts" / "1" / "owner.json").write_text(content)
    assert said(read_run(run)) == ("running", "on unknown")  # until its lease is over
    os.utime(run / "attempts" / "1" / "alive", (1e9, 1e9))
    assert read_run(run).state == "killed"


def test_all_runs_below_a_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run.parents[1]
    shutil.copytree(run, root / "birds" / "4567abcd")
    shutil.copytree(run, root / "birds" / ".hidden")
    shutil.copytree(run, run / "attempts" / "copy")  # inside of a run there are no runs
    assert main(["status", str(root), str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in found] == [str(root / "birds" / "4567abcd"), str(run)]
    assert {each["step"] for each in found} == {30}


def test_where_there_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: runs: no such folder; ")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(["status", "empty", "file"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: empty: no run, and no run in it; ")
    assert second.startswith("error: file: not a folder; ")


def test_it_runs_by_default_on_runs_and_without_torch(run: Path) -> None:
    program = (
        "import sys; from adafilter_dist.__main__ import main; code = main(['status']); "
        "sys.exit(code or sum(name in sys.modules for name in ('torch', 'numpy', 'pydantic')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=run.parents[2],
        env=os.environ | {"PYTHONPATH": str(CLONE)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("runs/demo/0123abcd  running")
