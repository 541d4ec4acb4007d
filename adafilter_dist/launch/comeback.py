"""Requeues an interrupted run's job, and records that in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adafilter_dist.launch.requeue import RequeueDecision, requeue
from adafilter_dist.run.files import RunFiles, new_event


def requeue_run(run: Path, job: str, decision: RequeueDecision, say: Callable[[str], None]) -> bool:
    """Record the decision and requeue the job if that is ours to do; returns if it runs again."""
    if decision.by == "nobody":
        return False
    files = RunFiles(run)
    before = files.read_status()
    # Recorded first: once SLURM has the request, the next attempt may begin at any time.
    files.note_state(before, "queued", decision.reason)
    files.add_event(new_event("requeued", reason=decision.reason, by=decision.by, job=job))
    try:
        if decision.by == "we":
            requeue(job)
    except OSError as error:
        files.note_state(before, str(before.get("state", "stopped")), f"{decision.reason}; {error}")
        files.add_event(new_event("not_requeued", error=str(error), job=job))
        say(f"{decision.reason}: SLURM does not requeue job {job}: {error}")
        return False
    say(f"{decision.reason}: job {job} was requeued and goes on from here")
    return True
