"""The attempts at a run, and the checkpoints that they left."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import owners
from adafilter_dist.status.model import Attempt, CheckpointFolder
from adafilter_dist.status.state import claim_of, host_of
from adafilter_dist.system.json_files import Row, changed, text, whole


def read_attempts(run: Path, events: list[Row], state: str, reason: str) -> list[Attempt]:
    """All attempts, the first one first; the newest ends as the run's ``state`` says."""
    starts: dict[int, Row] = {}
    ends: dict[int, Row] = {}
    turn = 0
    for event in events:
        if event.get("kind") == "start":
            turn = whole(event, "attempt") or turn + 1
            starts[turn] = event
        elif event.get("kind") in ("stopped", "finished"):
            ends[turn] = event
    try:
        claimed = {claim_of(owner): owner for owner in owners(run)}
    except (OSError, TypeError, ValueError):
        claimed = {}
    newest = max([*starts, *claimed], default=0)
    attempts = []
    for turn in sorted({*starts, *claimed}):
        start, end, files = starts.get(turn, {}), ends.get(turn), RunFiles(run).attempt(turn)
        ended = files.read_end()
        when: str | None
        if turn == newest and state in ("running", "stalled", "unknown"):
            how, when = joined(state, reason), None
        elif ended:
            how = joined(text(ended, "state") or "ended", text(ended, "reason"))
            when = changed(files.ended)
        elif end is not None:
            how = joined(str(end["kind"]), text(end, "reason"))
            when = text(end, "time")
        else:
            how = joined(state, reason) if turn == newest else "killed"
            when = changed(files.alive)
        attempts.append(
            Attempt(
                turn,
                host_of(claimed[turn]) if turn in claimed else None,
                text(vars(claimed[turn]), "job") if turn in claimed else None,
                text(start, "time") or changed(files.owner),
                when,
                how,
                whole(start, "step"),
                whole(start, "steps_lost"),
            )
        )
    return attempts


def joined(state: str, reason: str | None) -> str:
    """``stopped: TERM``, or the state alone."""
    return f"{state}: {reason}" if reason else state


def read_checkpoints(run: Path) -> list[CheckpointFolder]:
    """All checkpoints, the oldest first."""
    checkpoints = []
    for folder in reversed(RunFiles(run).checkpoint_folders()):
        step = folder.name.removeprefix("step-")
        if step.isdecimal():
            checkpoints.append(CheckpointFolder(folder.name, int(step), _size(folder)))
    return checkpoints


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # replaced by a newer one this very moment
        return 0
