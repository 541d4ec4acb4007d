"""The attempts at a run: when each began, on which host, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import Owner, owners
from adafilter_dist.system.json_files import Row, changed, text, whole


@dataclass(frozen=True)
class Attempt:
    """One process's turn at the run; times are ISO, UTC. ``end`` is None while it may run."""

    number: int
    host: str | None
    job: str | None
    start: str | None
    end: str | None
    how: str
    first_step: int | None
    steps_lost: int | None


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


def claim_of(owner: Owner) -> int:
    """The number of the owner's attempt; 0 if it cannot be read."""
    return whole(vars(owner), "attempt") or 0


def host_of(owner: Owner) -> str | None:
    """The owner's host; None if it cannot be read."""
    return text(vars(owner), "host")
