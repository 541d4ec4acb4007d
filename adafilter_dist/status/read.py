"""What a run folder says of its run: read whatever state it is in."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from adafilter_dist.errors import resume_line
from adafilter_dist.launch.local import is_running
from adafilter_dist.run.attempts import Attempt, host_of, read_attempts
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.submission import Submitted, read_submitted
from adafilter_dist.status.checkpoints import read_checkpoints
from adafilter_dist.status.failure import first_failure
from adafilter_dist.status.model import RunStatus
from adafilter_dist.status.state import RESUMABLE, find_owner, state_of
from adafilter_dist.system.json_files import Row, number, text, whole

_STARTING_SECONDS = 60.0


def read_run(run: Path, now: float | None = None) -> RunStatus:
    """Read and judge a run folder; what cannot be read is named in ``problems``, never raised."""
    now = time.time() if now is None else now
    files, problems = RunFiles(run), list[str]()
    # Before status.json: what a process wrote last is there once it is gone.
    owner, alive = find_owner(run, problems)
    status = files.read_status(problems)
    rows = files.read_metrics(problems)
    events = files.read_events(problems)
    submitted = read_submitted(run, problems)
    state, reason = state_of(run, status, owner, alive, now)
    if state == "queued" and submitted and _is_lost(submitted, status, now):
        state, reason = "lost", f"there is no process {submitted.job} on this machine"
    host = host_of(owner) if owner else text(status, "host")
    if state == "unknown" and not problems:
        reason = "status.json names no known state" if status else "no status.json"
        reason = reason if run.is_dir() else "no such folder"
    if state in ("running", "stalled") and alive is None and host:
        reason = f"{reason} on {host}" if reason else f"on {host}"
    attempts = read_attempts(run, events, state, reason)
    val, test = _best(rows, "val"), _last(rows, "test")
    metric, value = _metric(rows, val, test)
    trained = next((row for row in reversed(rows) if row.get("kind") == "train"), {})
    heartbeat = number(status, "heartbeat")
    last = max([1, whole(status, "attempt") or 1, *(attempt.number for attempt in attempts)])
    return RunStatus(
        run=str(run),
        state=state,
        reason=reason,
        alive=alive,
        host=host,
        nodes=[host] if host and state not in ("queued", "lost") else [],
        job=_job(submitted, attempts),
        slurm=None,
        starts_in=None,
        phase=text(status, "phase"),
        step=whole(status, "step"),
        total_steps=whole(status, "total_steps"),
        epoch=whole(status, "epoch"),
        epochs=whole(status, "epochs"),
        metric=metric,
        value=value,
        val_top1=val,
        test_top1=test,
        images_per_second=number(trained, "images_per_second"),
        step_seconds=number(status, "step_seconds"),
        world_size=whole(status, "world_size"),
        restarts=last - 1,
        steps_lost=sum(attempt.steps_lost or 0 for attempt in attempts),
        heartbeat_age=None if heartbeat is None else max(0.0, now - heartbeat),
        failure=first_failure(run, attempts[-1], submitted)
        if attempts and state in ("failed", "killed")
        else None,
        resume=resume_line_of(str(run), state),
        problems=problems,
        attempts=attempts,
        checkpoints=read_checkpoints(run),
    )


def resume_line_of(run: str, state: str) -> str | None:
    """The command that goes on with a run, None where there is nothing to go on with."""
    return resume_line(run) if state in RESUMABLE else None


def _job(submitted: Submitted | None, attempts: list[Attempt]) -> str | None:
    """The run's SLURM job id: of its submission, else of the job in which its owner ran."""
    if submitted is not None:
        return submitted.job if submitted.cluster == "slurm" else None
    return attempts[-1].job if attempts else None


def _is_lost(submitted: Submitted, status: Row, now: float) -> bool:
    """Whether it was started without SLURM a while ago, and its process never had the run."""
    if submitted.cluster != "local" or submitted.host not in (None, socket.gethostname()):
        return False
    if is_running(submitted.job):
        return False
    return now - (number(status, "heartbeat") or 0.0) > _STARTING_SECONDS


def _scores(rows: list[Row], split: str) -> list[float]:
    scores = (number(row, "top1") for row in rows if row.get("split") == split)
    return [top1 for top1 in scores if top1 is not None]


def _best(rows: list[Row], split: str) -> float | None:
    return max(_scores(rows, split), default=None)


def _last(rows: list[Row], split: str) -> float | None:
    scores = _scores(rows, split)
    return scores[-1] if scores else None


def _metric(
    rows: list[Row], val: float | None, test: float | None
) -> tuple[str | None, float | None]:
    """The accuracy on the test set, else the best in validation, else the last loss."""
    if test is not None:
        return "test top-1", test
    if val is not None:
        return "best val top-1", val
    losses = [loss for row in rows[-1:] if (loss := number(row, "loss")) is not None]
    return ("loss", losses[0]) if losses else (None, None)
