"""How long a run takes to go on: stopped and resumed by the real command, its checkpoint read."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from adafilter_dist.checkpoint.store import Checkpoints
from adafilter_dist.metrics import read_lines
from adafilter_dist.training.preemption import DELAY
from bench.saving import Times

ROOT = Path(__file__).resolve().parents[2]


def restarts(words: list[str], folder: Path, repeats: int) -> Times:
    """Start, stop by TERM and go on with a run; seconds from the start of each that goes on.

    The last one runs to its end.
    """
    run = folder / "run"
    times: Times = defaultdict(list)
    stop(started(folder, "train", *words, f"run_dir={run}"), run, 0)
    for number in range(repeats):
        before = max(row["step"] for row in rows(run))
        began = time.time()
        process = started(folder, "resume", str(run))
        if number < repeats - 1:
            stop(process, run, before)
        elif process.wait(1800) != 0:
            fail(folder, f"the run ended with {process.returncode}")
        attempt = number + 2
        claimed = (run / "attempts" / str(attempt) / "owner.json").stat().st_mtime
        (at,) = [
            moment(event["time"])
            for event in read_lines(run / "events.jsonl")
            if event["kind"] == "start" and event["attempt"] == attempt
        ]
        new = [row["time"] for row in rows(run) if row["step"] > before]
        # A row is written when the figures of its step are read, DELAY steps later.
        step = statistics.median(np.diff(new[: DELAY + 2]))
        times["claimed"].append(claimed - began)
        times["built and loaded"].append(at - claimed)
        times["warm-up and a step"].append(new[0] - DELAY * step - at)
        times["first step"].append(new[0] - DELAY * step - began)
        times["first row"].append(new[0] - began)
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import adafilter_dist.training.attempt"], cwd=ROOT, check=True
        )
        times["imports"].append(time.perf_counter() - began)
    return times


def loading(run: Path, repeats: int = 5) -> Times:
    """Seconds of reading and verifying the newest checkpoint, from memory and from the disk."""
    times: Times = defaultdict(list)
    checkpoints = Checkpoints(run)
    folder = next(checkpoints.steps())
    files = [*folder.iterdir(), *checkpoints.folder.glob("frozen.*")]
    times["megabytes"] = [sum(file.stat().st_size for file in files) / 1e6]
    for _ in range(repeats):
        for name in ("load from disk", "load from memory"):
            if name == "load from disk":
                for file in files:
                    with file.open("rb") as opened:
                        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            checkpoints.load(folder)
            times[name].append(time.perf_counter() - began)
    return times


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """``adafilter WORDS``; what it prints goes to a file."""
    command = [sys.executable, "-m", "adafilter_dist", *words]
    home = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "printed.txt").open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": home}, stdout=file, stderr=file
        )


def stop(process: subprocess.Popen[bytes], run: Path, before: int) -> None:
    """TERM once three rows are new; the process must leave as stopped."""
    try:
        until = time.monotonic() + 600
        while sum(row["step"] > before for row in rows(run)) < DELAY + 2:
            if process.poll() is not None or time.monotonic() > until:
                fail(run.parent, "the run ended, or did no step in 10 minutes")
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        if process.wait(600) != 75:
            fail(run.parent, f"the run was not stopped but ended with {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()  # and its writer dies with it


def fail(folder: Path, why: str) -> NoReturn:
    printed = (folder / "printed.txt").read_text().splitlines()[-20:]
    raise SystemExit("\n".join([*printed, why]))


def rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_lines(run / "metrics.jsonl") if row["kind"] == "train"]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
