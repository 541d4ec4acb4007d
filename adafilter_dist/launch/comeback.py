"""A run whose job was interrupted: noted in its folder, its job requeued where that is on us."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adafilter_dist.launch.requeue import Verdict, requeue
from adafilter_dist.metrics.jsonl import append
from adafilter_dist.system.files import write_json
from adafilter_dist.system.json_files import read_object


def come_back(run: Path, job: str, verdict: Verdict, say: Callable[[str], None]) -> bool:
    """Note the verdict and requeue the job if that is on us; whether the job will run again."""
    if verdict.by == "nobody":
        return False
    before = read_object(run / "status.json", [])
    # First noted, then asked for: once SLURM has the request, the next attempt may begin any time.
    _note(run, before, "queued", verdict.reason)
    _event(run, "requeued", reason=verdict.reason, by=verdict.by, job=job)
    try:
        if verdict.by == "we":
            requeue(job)
    except OSError as error:
        _note(run, before, str(before.get("state", "stopped")), f"{verdict.reason}; {error}")
        _event(run, "not_requeued", error=str(error), job=job)
        say(f"{verdict.reason}: SLURM does not requeue job {job}: {error}")
        return False
    say(f"{verdict.reason}: job {job} was requeued and goes on from here")
    return True


def _note(run: Path, before: dict[str, Any], state: str, reason: str) -> None:
    said = {**before, "state": state, "reason": reason, "heartbeat": time.time()}
    write_json(run / "status.json", said)


def _event(run: Path, kind: str, **fields: Any) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    append(run / "events.jsonl", {"time": now, "kind": kind, **fields})
