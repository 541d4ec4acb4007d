"""``adafilter rm``: what it removes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.run.ownership import claim
from adafilter_dist.run.removal import remove_folder
from adafilter_dist.system import files
from tests.launch.recorded import Cluster

CLONE = Path(__file__).parents[2]


def make(folder: Path, state: str = "failed", **fields: object) -> Path:
    """A run folder with a checkpoint in it."""
    (folder / "checkpoints" / "step-000000003").mkdir(parents=True)
    (folder / "checkpoints" / "step-000000003" / "model.safetensors").write_bytes(b"x" * 3000)
    (folder / "recipe.yaml").write_text("name: demo\n")
    (folder / "attempts").mkdir()
    files.write_json(folder / "status.json", {"state": state, "step": 3, **fields})
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_slurm: Cluster) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "demo"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["rm", "--yes", *words]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors


def test_runs_are_removed_and_others_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        make(runs / name)
    for name in ("jobs", "code", "figures", "best"):
        (runs / "a" / name).mkdir()
    # What a removal left that was interrupted when it took the run back.
    (runs / "a" / ".status.json.7.removed").touch()
    assert main(["rm", "runs/demo/a", str(runs / "b") + "/", "--yes"]) == 0
    assert [path.name for path in runs.iterdir()] == ["c"]
    assert capsys.readouterr().out.splitlines() == ["removed runs/demo/a", f"removed {runs / 'b'}"]


@pytest.mark.parametrize("state", ["queued", "running"])
def test_what_is_in_use_is_refused_and_with_it_the_others(
    runs: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    make(runs / "a")
    busy = make(runs / "b", state, heartbeat=1e12)
    if state == "running":
        claim(busy)  # by this process, which lives
    said = refused(capsys, "runs/demo/a", "runs/demo/b")
    assert said.startswith("error: runs/demo/b: ") and len(said.splitlines()) == 1
    assert (runs / "a" / "recipe.yaml").exists() and (busy / "recipe.yaml").exists()


def test_a_process_that_has_the_run_is_seen_whatever_its_status_says(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = make(runs / "a")
    claim(busy)
    files.write_json(busy / "status.json", {"state": "finished", "attempt": 1})
    assert "in use by" in refused(capsys, "runs/demo/a")
    assert (busy / "recipe.yaml").exists()


def test_what_is_no_run_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs / "a")
    assert "not a run folder" in refused(capsys, "runs")
    assert "not a run folder" in refused(capsys, "runs/demo")
    assert "no such folder" in refused(capsys, "runs/demo/b")
    assert "not a folder" in refused(capsys, "runs/demo/a/recipe.yaml")
    assert "without '..'" in refused(capsys, "runs/demo/b/../a")
    (runs / "a" / "thesis.tex").touch()  # as with run_dir=. in a project
    assert "no part of a run, move it away first: thesis.tex" in refused(capsys, "runs/demo/a")
    (runs / "a" / "thesis.tex").unlink()
    os.chdir(runs / "a" / "checkpoints")
    assert "working folder" in refused(capsys, str(runs / "a"))
    assert (runs / "a" / "recipe.yaml").exists()


def test_no_path_through_a_symlink(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs / "a")
    (runs / "link").symlink_to(runs / "a")
    Path("other").symlink_to(runs.parent)
    for word in ("runs/demo/link", "other/demo/a", str(Path("other").absolute() / "demo" / "a")):
        said = refused(capsys, word)
        assert "is a symlink" in said and str(runs / "a") in said
    assert (runs / "a" / "recipe.yaml").exists()
    # A link inside is removed, not what it leads to.
    kept = runs.parent / "kept"
    kept.mkdir()
    (runs / "a" / "figures").symlink_to(kept)
    assert main(["rm", "runs/demo/a", "-y"]) == 0
    assert kept.is_dir() and not (runs / "a").exists()


def ask(run: Path, answer: bytes) -> str:
    """What ``adafilter rm RUN`` says at a terminal where somebody answers."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adafilter_dist", "rm", str(run)],
        env=os.environ | {"PYTHONPATH": str(CLONE)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while b"[y/N] " not in said:
            said += os.read(terminal, 1024)
        os.write(terminal, answer)
        while more := os.read(terminal, 1024):
            said += more
    except OSError:
        pass  # the child has closed its end
    finally:
        os.close(terminal)
        status = process.wait()
    assert status == 0, said
    return said.decode()


def test_it_asks_first(runs: Path) -> None:
    run = make(runs / "a")
    said = ask(run, b"\n")
    assert f"{run}: failed at step 3, " in said and "nothing was removed" in said
    assert (run / "recipe.yaml").exists()
    assert "nothing was removed" not in ask(run, b"y\n")
    assert not run.exists()


def test_where_nobody_can_be_asked(runs: Path) -> None:
    run = make(runs / "a")
    done = subprocess.run(
        [sys.executable, "-m", "adafilter_dist", "rm", str(run)],
        env=os.environ | {"PYTHONPATH": str(CLONE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 2 and "add --yes" in done.stderr
    assert (run / "recipe.yaml").exists()


def test_an_interrupted_removal_is_no_run_any_more_and_is_finished_by_the_next(runs: Path) -> None:
    """Whatever comes after the rename: under its own name nothing half is left."""
    half = make(runs / "a").rename(runs / ".a.123.removed")
    make(runs / "b")
    assert main(["status", str(runs.parent), "--json"]) == 0
    remove_folder(runs / "b")
    assert not half.exists() and list(runs.iterdir()) == []


def test_status_hides_what_failed_before_its_first_step(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(runs / "a")
    for name in ("b", "c", "submitted"):
        (make(runs / name) / "status.json").write_text('{"state": "failed", "step": 0}')
        checkpoint = runs / name / "checkpoints" / "step-000000003"
        (checkpoint / "model.safetensors").unlink()
        checkpoint.rmdir()
    submitted = {"cluster": "local", "job": "4194305", "log": "x"}
    (runs / "submitted" / "submitted.json").write_text(json.dumps(submitted))
    assert main(["status"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["RUN", "runs/demo/a", "runs/demo/submitted"]
    assert last.startswith("2 failed before their first step: --all shows")
    assert main(["status", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    # By its name, and for programs, each is there.
    assert main(["status", "runs/demo/b"]) == 0
    assert "runs/demo/b" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    for name in ("a", "b", "submitted"):
        assert main(["rm", "-y", f"runs/demo/{name}"]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("1 failed before its first step")
