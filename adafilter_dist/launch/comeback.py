"""A run whose job was interrupted: noted in its folder, its job requeued where that is on us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adafilter_dist.launch.requeue import Verdict, requeue
from adafilter_dist.run.files import RunFiles, new_event


def come_back(run: Path, job: str, verdict: Verdict, say: Callable[[str], None]) -> bool:
    """Note the verdict and requeue the job if that is on us; whether the job will run again."""
    if verdict.by == "nobody":
        return False
    files = RunFiles(run)
    before = files.read_status()
    # First noted, then asked for: once SLURM has the request, the next attempt may begin any time.
    files.note_state(before, "queued", verdict.reason)
    files.add_event(new_event("requeued", reason=verdict.reason, by=verdict.by, job=job))
    try:
        if verdict.by == "we":
            requeue(job)
    except OSError as error:
        files.note_state(before, str(before.get("state", "stopped")), f"{verdict.reason}; {error}")
        files.add_event(new_event("not_requeued", error=str(error), job=job))
        say(f"{verdict.reason}: SLURM does not requeue job {job}: {error}")
        return False
    say(f"{verdict.reason}: job {job} was requeued and goes on from here")
    return True
