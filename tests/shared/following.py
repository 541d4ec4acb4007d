"""Run folders as submission leaves them, on a machine where SLURM says what a test wants."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adafilter_dist.run.ownership import Ownership, this_process
from adafilter_dist.status import RunStatus, read_runs
from adafilter_dist.system import files

JOB = "6692"


def write_status(run: Path, state: str, **fields: Any) -> None:
    """status.json of a moment ago."""
    run.mkdir(parents=True, exist_ok=True)
    files.write_json(
        run / "status.json", {"state": state, "reason": "", "heartbeat": time.time()} | fields
    )


def submit(run: Path, *, job: str = JOB, cluster: str = "slurm", tasks: int = 4) -> Path:
    """A run that was just submitted; the pattern of its logs."""
    write_status(run, "queued")
    log = run / "submitted" / ("%t.log" if cluster == "slurm" else "log")
    log.parent.mkdir(exist_ok=True)
    known = {
        "cluster": cluster,
        "job": job,
        "submitted": "2026-11-23T05:00:00+00:00",
        "folder": str(log.parent),
        "log": str(log),
        "tasks": tasks,
        "nodes": 2,
        "words": ["recipe=demo"],
    }
    files.write_json(run / "submitted.json", known)
    return log


def attempt(run: Path, *, job: str | None = JOB, silent: float = 0.0) -> Ownership:
    """A process on another machine has claimed the run, and was heard of ``silent`` seconds ago."""
    number = len(list((run / "attempts").glob("*"))) + 1
    owner = replace(this_process(), attempt=number, host="n1", machine="another boot", job=job)
    folder = run / "attempts" / str(number)
    folder.mkdir(parents=True)
    files.write_json(folder / "owner.json", asdict(owner))
    (folder / "alive").touch()
    if silent:
        seen = time.time() - silent
        os.utime(folder / "alive", (seen, seen))
    write_status(run, "running", attempt=number, step=30, total_steps=80)
    return Ownership(run, number)


def note(run: Path, number: int, rank: int, when: float, *error: str) -> None:
    """The last words of a rank."""
    content = {"rank": rank, "host": f"n{rank}", "time": when, "error": list(error)}
    files.write_json(run / "attempts" / str(number) / f"failed.{rank}.json", content)


def said(run: Path) -> tuple[str, str]:
    """State and reason with SLURM asked."""
    found = read(run)
    return found.state, found.reason


def read(run: Path) -> RunStatus:
    """The run with SLURM asked."""
    (found,) = read_runs([run])
    return found
