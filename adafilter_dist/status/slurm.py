"""How runs stand where SLURM has them: what their folders and the queue say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.submission import read_submitted
from adafilter_dist.slurm.queue import Queue, QueuedJob
from adafilter_dist.status.failure import LINES, first_failure, last_lines, srun_failure
from adafilter_dist.status.model import Failure, RunStatus
from adafilter_dist.status.read import read_run, resume_line_of

_STARTS = 30.0  # seconds by which clocks may differ, and a job may start before it is noted
_FAR = 30 * 86400.0  # seconds ahead in which SLURM only guesses


def read_runs(
    folders: Sequence[Path], queue: Queue | None = None, now: float | None = None
) -> list[RunStatus]:
    """Read runs, asking SLURM once for all; ``queue.trouble`` says why it could not be asked."""
    queue = queue or Queue()
    now = time.time() if now is None else now
    runs = [read_run(folder, now) for folder in folders]
    asked = {run.run: run.job for run in runs if run.job and run.state != "finished"}
    # How a job ended long ago changes nothing about a run that noted its own end.
    past = {job for run in runs if run.state not in ("stopped", "failed") and (job := run.job)}
    jobs = queue.look(asked.values(), past=past)
    return [
        with_job(run, job, jobs[job], now)
        if (job := asked.get(run.run)) is not None
        and job in jobs
        and not _heard_of_since(run, queue.asked, now)
        else run
        for run in runs
    ]


def _heard_of_since(run: RunStatus, asked: float, now: float) -> bool:
    """Whether it gave a sign of life since SLURM was asked, which can be some seconds ago."""
    return run.state in ("running", "stalled") and _last_sign(run, now) > asked


def _last_sign(run: RunStatus, now: float) -> float:
    """When it was last heard of, in seconds since 1970."""
    signs = [now - run.heartbeat_age] if run.heartbeat_age is not None else []
    if run.attempts:
        files = RunFiles(Path(run.run)).attempt(run.attempts[-1].number)
        with suppress(OSError):
            signs.append(files.alive.stat().st_mtime)
    return max(signs, default=0.0)


def with_job(run: RunStatus, name: str, job: QueuedJob | None, now: float) -> RunStatus:
    """The run as its job makes it; ``job`` is None where SLURM does not know it."""
    state, reason = _state_with_job(run, name, job, now)
    attempts = run.attempts
    if attempts and attempts[-1].end is None and state in ("queued", "killed"):
        attempts = [*attempts[:-1], replace(attempts[-1], how="killed")]
    nodes = run.nodes
    if state in ("queued", "cancelled", "lost"):
        nodes = []
    elif job is not None and job.nodes and (job.running or run.state == "queued"):
        # A job that is completing names only those that it still has.
        nodes = nodes if job.state == "COMPLETING" else list(job.nodes)
    failure = run.failure if state in ("failed", "killed") else None
    if state == "failed" and run.state == "queued":
        failure = _before_it_began(Path(run.run))
    elif state == "killed" and run.state != "killed" and attempts:
        failure = first_failure(Path(run.run), attempts[-1], read_submitted(Path(run.run), []))
    return replace(
        run,
        state=state,
        reason=reason,
        slurm=job.state if job else None,
        starts_in=_starts_in(job, now),
        nodes=nodes,
        attempts=attempts,
        failure=failure,
        resume=resume_line_of(run.run, state),
    )


def _state_with_job(
    run: RunStatus, name: str, job: QueuedJob | None, now: float
) -> tuple[str, str]:
    state, reason = run.state, run.reason
    if job is None:
        return (
            ("lost", f"SLURM no longer knows job {name}") if state == "queued" else (state, reason)
        )
    # Not of a process that somebody started by hand meanwhile.
    its_own = bool(run.attempts) and run.attempts[-1].job in (job.name, job.number)
    lives = state in ("running", "stalled")
    seen = _last_sign(run, now)
    if job.pending and (not lives or (run.alive is not True and its_own)):
        before = reason if state == "queued" else "requeued"
        before = before if before or not run.attempts else "requeued"
        return "queued", "; ".join(part for part in (before, job.why) if part)
    if job.state == "CONFIGURING" and not lives:
        return "queued", "its nodes are being made ready"
    if job.state == "SUSPENDED" and lives:
        return "stalled", "suspended by SLURM"
    if job.state == "RUNNING" and not lives:
        # Its process reports within seconds of the start, which is later than any end before it.
        allowed = _STARTS if state == "queued" else 0.0
        if job.start is not None and job.start > seen - allowed:
            return "running", "starting"
    if job.ended and state == "queued":
        if job.state == "CANCELLED":
            return "cancelled", "while it was queued"
        return "failed", f"job {name} ended before the run went on: {job.state_text}"
    if job.ended and lives and run.alive is not True and its_own:
        return "killed", f"its job ended: {job.state_text}"
    if job.ended and state == "killed" and its_own:
        return "killed", f"{reason}; its job ended: {job.state_text}"
    return state, reason


def _starts_in(job: QueuedJob | None, now: float) -> float | None:
    """Seconds until a pending job is expected to start, None if SLURM does not know."""
    if job is None or not job.pending or job.start is None:
        return None
    return job.start - now if 0.0 < job.start - now < _FAR else None


def _before_it_began(run: Path) -> Failure | None:
    """The last output of a job that ended before its first rank claimed the run."""
    submitted = read_submitted(run, [])
    if submitted is None:
        return None
    failure = srun_failure(submitted)
    if failure is None:
        lines = last_lines(submitted.log_of(0))[-LINES:]
        failure = Failure(None, None, lines) if lines else None
    return failure
