"""The runner of the GPU checks: its limits, what it writes, and all of it that a CPU can do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_runs
import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks.conftest import BENCHMARKS

SCRIPT = str(BENCHMARKS / "gpu_check.py")


def part(name: str, source: str, limit: int = 60, packages: tuple[str, ...] = ()) -> gpu_check.Part:
    """A part of a few lines of Python."""
    return gpu_check.Part(name, 1, limit, name, (sys.executable, "-c", source), packages, True)


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.mark.slow
def test_list_names_every_part_and_an_unknown_one_is_refused() -> None:
    listed = call("--list")
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert {"kernels", "identities", "resume", "train", "compiled"} < set(names)
    refused = call("--device", "cpu", "--only", "identities,resum")
    assert refused.returncode == 2
    assert refused.stderr.startswith("--only: no part resum; there are doctor, kernels")


@pytest.mark.slow
@pytest.mark.may_skip("needs a machine without a GPU")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu() -> None:
    refused = call("--only", "doctor")
    assert refused.returncode == 2 and "torch sees no GPU" in refused.stderr


@pytest.mark.slow
def test_a_part_at_its_limit_ends_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    source = (
        "import os, signal\n"
        "pid = os.fork()\n"
        f"if pid: open({str(child)!r} + '.new', 'w').write(str(pid))\n"
        f"if pid: os.rename({str(child)!r} + '.new', {str(child)!r})\n"
        "signal.pause()\n"
    )
    outcome = gpu_check.run_part(part("hangs", source, limit=2), tmp_path / "log")
    assert outcome.state == "FAILED, ended after its 2 s"
    pid = int(child.read_text())
    # Killed with the group: soon gone, or a zombie until the machine's first process reaps it.
    end = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    alive = is_alive(pid)
    if alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def test_the_parts_after_one_that_failed_run(tmp_path: Path) -> None:
    todo = [
        part("breaks", "raise SystemExit('no such kernel')"),
        part("lacks", "", packages=("no_such_package",)),
        part("works", "print('all is well')"),
        part("late", "", limit=10_000),
    ]
    outcomes = gpu_check.check(todo, tmp_path, "cpu", first=1000)
    assert [outcome.state for outcome in outcomes[:3]] == [
        "FAILED, exit code 1",
        "skipped: no_such_package not installed",
        "ok",
    ]
    assert outcomes[0].lines[-1] == "no such kernel"
    assert outcomes[3].state.endswith("s were left, it may take 10000")
    table = (tmp_path / "summary.md").read_text()
    assert "| breaks | breaks | FAILED, exit code 1 |" in table and "- torch: " in table
    assert (tmp_path / "works.log").read_text().endswith("all is well\n")


def test_pictures_are_those_of_their_class(tmp_path: Path) -> None:
    gpu_runs.make_pictures(tmp_path / "pictures", 16)
    files = sorted((tmp_path / "pictures").rglob("*.jpg"))
    assert len(files) == 16 + 2
    with Image.open(tmp_path / "pictures" / "train" / "across" / "00000.jpg") as picture:
        gray = torch.from_numpy(np.array(picture.convert("L"))).float()
    # Across: rows differ, columns hardly do.
    assert gray.mean(1).std() > 5 * gray.mean(0).std()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_everything_that_a_cpu_can_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", "--out", str(tmp_path)], check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "summary.md").read_text().count("| ok |") == 5
