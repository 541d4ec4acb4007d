"""What a run folder says of its run: read whatever state it is in, and judged. Imports no torch."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.ownership import LEASE, Owner, is_alive, newest_owner, owners, this_process
from adafilter_dist.salvage import Row, changed, number, read_object, read_rows, text, whole

_RECORDED = ("queued", "running", "stopped", "finished", "failed")
_DEPTH = 4  # of runs below a folder of runs; runs/<recipe>/<hash> is 2
_TRAINING_SECONDS = 15.0
_OTHER_SECONDS = 600.0  # an evaluation or a compilation tells of no steps


@dataclass(frozen=True)
class Attempt:
    """One process's turn at the run; times are ISO, UTC. ``end`` is None while it may run."""

    number: int
    host: str | None
    start: str | None
    end: str | None
    how: str
    first_step: int | None
    steps_lost: int | None


@dataclass(frozen=True)
class CheckpointFolder:
    """A published checkpoint, not verified; ``size`` in bytes, frozen weights left out."""

    folder: str
    step: int
    size: int


@dataclass(frozen=True)
class RunStatus:
    """A run in numbers; None is for what the folder does not say. ``epoch`` counts from 0.

    ``state``: as recorded (queued, running, stopped, finished, failed), or killed, stalled,
    unknown. ``alive``: whether its process is, None where that cannot be known from here.
    """

    run: str
    state: str
    reason: str
    alive: bool | None
    host: str | None
    phase: str | None
    step: int | None
    total_steps: int | None
    epoch: int | None
    epochs: int | None
    metric: str | None
    value: float | None
    images_per_second: float | None
    step_seconds: float | None
    world_size: int | None
    restarts: int
    steps_lost: int
    heartbeat_age: float | None
    resume: str | None
    problems: list[str]
    attempts: list[Attempt]
    checkpoints: list[CheckpointFolder]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, even if half of it is missing."""
    known = ("recipe.yaml", "status.json", "attempts")
    try:
        return folder.is_dir() and any((folder / name).exists() for name in known)
    except OSError:  # not for us to look into
        return False


def find_runs(root: Path) -> list[Path]:
    """``root`` if it is a run, else the runs below it; UserError if there is none."""
    if is_run(root):
        return [root]
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise UserError(f"{root}: {what}; give a run or a folder of runs: adafilter status PATH")
    found = []
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        if folder != root and is_run(folder):
            found.append(folder)
            folders.clear()
        elif len(folder.relative_to(root).parts) >= _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    if not found:
        raise UserError(f"{root}: no run, and no run in it; give another: adafilter status PATH")
    return sorted(found)


def read_run(run: Path, now: float | None = None) -> RunStatus:
    """Read and judge a run folder; what cannot be read is named in ``problems``, never raised."""
    now = time.time() if now is None else now
    problems: list[str] = []
    # Before status.json: what a process wrote last is there once it is gone.
    owner, alive = _owner(run, problems)
    status = read_object(run / "status.json", problems)
    rows = read_rows(run / "metrics.jsonl", problems)
    events = read_rows(run / "events.jsonl", problems)
    state, reason = _judged(run, status, owner, alive, now)
    host = _host(owner) if owner else text(status, "host")
    if state == "unknown" and not problems:
        reason = "status.json names no known state" if status else "no status.json"
    if state in ("running", "stalled") and alive is None and host:
        reason = f"{reason} on {host}" if reason else f"on {host}"
    attempts = _attempts(run, events, state, reason)
    metric, value = _metric(rows)
    trained = next((row for row in reversed(rows) if row.get("kind") == "train"), {})
    heartbeat = number(status, "heartbeat")
    last = max([1, whole(status, "attempt") or 1, *(attempt.number for attempt in attempts)])
    return RunStatus(
        run=str(run),
        state=state,
        reason=reason,
        alive=alive,
        host=host,
        phase=text(status, "phase"),
        step=whole(status, "step"),
        total_steps=whole(status, "total_steps"),
        epoch=whole(status, "epoch"),
        epochs=whole(status, "epochs"),
        metric=metric,
        value=value,
        images_per_second=number(trained, "images_per_second"),
        step_seconds=number(status, "step_seconds"),
        world_size=whole(status, "world_size"),
        restarts=last - 1,
        steps_lost=sum(attempt.steps_lost or 0 for attempt in attempts),
        heartbeat_age=None if heartbeat is None else max(0.0, now - heartbeat),
        resume=f"adafilter resume {shlex.quote(str(run))}"
        if state in ("stopped", "failed", "killed")
        else None,
        problems=problems,
        attempts=attempts,
        checkpoints=_checkpoints(run),
    )


def _judged(
    run: Path, status: Row, owner: Owner | None, alive: bool | None, now: float
) -> tuple[str, str]:
    """State and reason: what is recorded, unless the process tells otherwise."""
    state, reason = text(status, "state"), text(status, "reason") or ""
    if state not in _RECORDED:
        state = "running" if alive else "unknown"
    # Claimed after the last word in status.json: that one is of the attempt before.
    newer = owner is not None and _claim(owner) > (whole(status, "attempt") or 0)
    if newer and state != "unknown":
        state, reason = "running", "starting"
    if state in ("finished", "stopped", "failed", "queued"):
        return state, reason
    if owner is not None and alive is False:
        ended = read_object(run / "attempts" / str(owner.attempt) / "ended.json", [])
        how = text(ended, "state")
        if how in _RECORDED and how != "running":
            return how, text(ended, "reason") or ""
        return "killed", "its process is gone"
    heartbeat = number(status, "heartbeat")
    if state == "running" and heartbeat is not None and not newer:
        limit = _OTHER_SECONDS
        if status.get("phase") == "training":
            limit = max(3 * (number(status, "step_seconds") or 0.0), _TRAINING_SECONDS)
        if now - heartbeat > limit:
            return "stalled", f"no sign of progress for {ago(now - heartbeat)}"
    return state, reason


def _owner(run: Path, problems: list[str]) -> tuple[Owner | None, bool | None]:
    """Whoever has the run, and whether he lives."""
    try:
        owner = newest_owner(run)
        if owner is None:
            return None, None
        elsewhere = owner.machine != this_process().machine
        return owner, is_alive(run, owner, lease=_lease(run) if elsewhere else LEASE)
    except (OSError, TypeError, ValueError) as error:
        problems.append(f"attempts cannot be read: {error}")
        return None, None


def _claim(owner: Owner) -> int:
    return whole(vars(owner), "attempt") or 0


def _host(owner: Owner) -> str | None:
    return text(vars(owner), "host")


def _lease(run: Path) -> float:
    from adafilter_dist.recipe import load_recipe  # late: it takes longer than all the rest
    from adafilter_dist.recipe.schema import seconds

    try:
        return seconds(load_recipe([f"recipe={run / 'recipe.yaml'}"]).checkpoint.lease)
    except UserError:
        return LEASE


def _attempts(run: Path, events: list[Row], state: str, reason: str) -> list[Attempt]:
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
        claimed = {_claim(owner): owner for owner in owners(run)}
    except (OSError, TypeError, ValueError):
        claimed = {}
    newest = max([*starts, *claimed], default=0)
    found = []
    for turn in sorted({*starts, *claimed}):
        start, end, folder = starts.get(turn, {}), ends.get(turn), run / "attempts" / str(turn)
        ended = read_object(folder / "ended.json", [])
        when: str | None
        if turn == newest and state in ("running", "stalled", "unknown"):
            how, when = _joined(state, reason), None
        elif ended:
            how = _joined(text(ended, "state") or "ended", text(ended, "reason"))
            when = changed(folder / "ended.json")
        elif end is not None:
            how = _joined(str(end["kind"]), text(end, "reason"))
            when = text(end, "time")
        else:
            how = _joined(state, reason) if turn == newest else "killed"
            when = changed(folder / "alive")
        found.append(
            Attempt(
                turn,
                _host(claimed[turn]) if turn in claimed else None,
                text(start, "time") or changed(folder / "owner.json"),
                when,
                how,
                whole(start, "step"),
                whole(start, "steps_lost"),
            )
        )
    return found


def _joined(state: str, reason: str | None) -> str:
    return f"{state}: {reason}" if reason else state


def _checkpoints(run: Path) -> list[CheckpointFolder]:
    found = []
    for folder in sorted(run.glob("checkpoints/step-*")):
        step = folder.name.removeprefix("step-")
        if step.isdecimal():
            found.append(CheckpointFolder(folder.name, int(step), _size(folder)))
    return found


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # replaced by a newer one this very moment
        return 0


def _metric(rows: list[Row]) -> tuple[str | None, float | None]:
    """The accuracy on the test set, else the best in validation, else the last loss."""
    scores: dict[str, list[float]] = {"test": [], "val": []}
    for row in rows:
        top1 = number(row, "top1")
        if row.get("split") in scores and top1 is not None:
            scores[row["split"]].append(top1)
    if scores["test"]:
        return "test top-1", scores["test"][-1]
    if scores["val"]:
        return "best val top-1", max(scores["val"])
    losses = [loss for row in rows[-1:] if (loss := number(row, "loss")) is not None]
    return ("loss", losses[0]) if losses else (None, None)


def ago(seconds: float) -> str:
    """A span of time in two or three digits: ``8 s``, ``12 min``, ``3.5 h``, ``20 d``."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 and unit != "min" else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s"
