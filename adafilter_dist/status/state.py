"""Works out a run's state from its folder: the recorded state, and whether its process lives."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.run.attempts import claim_of
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import LEASE, Owner, is_alive, newest_owner, this_process
from adafilter_dist.status.model import ago
from adafilter_dist.system.json_files import Row, number, text, whole

RECORDED = ("queued", "running", "stopped", "finished", "failed")
RESUMABLE = ("stopped", "failed", "killed", "cancelled", "lost")
_TRAINING_SECONDS = 15.0
_OTHER_SECONDS = 600.0  # during an evaluation or a compilation no steps are reported


def state_of(
    run: Path, status: Row, owner: Owner | None, alive: bool | None, now: float
) -> tuple[str, str]:
    """State and reason: the recorded ones, unless the process shows that they are out of date."""
    state, reason = text(status, "state"), text(status, "reason") or ""
    if state not in RECORDED:
        state = "running" if alive else "unknown"
    newer = owner is not None and _is_newer(run, status, owner)
    if newer and state != "unknown":
        state, reason = "running", "starting"
    if state in ("finished", "stopped", "failed", "queued"):
        return state, reason
    if owner is not None and alive is False:
        ended = RunFiles(run).attempt(owner.attempt).read_end()
        how = text(ended, "state")
        if how in RECORDED and how != "running":
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


def _is_newer(run: Path, status: Row, owner: Owner) -> bool:
    """Whether the owner claimed the run after status.json was written, by an earlier attempt."""
    attempt = whole(status, "attempt")
    if attempt is None and status.get("state") == "queued":  # as it was submitted
        try:
            claimed = RunFiles(run).attempt(owner.attempt).owner.stat().st_mtime
        except OSError:
            return False
        return claimed > (number(status, "heartbeat") or 0.0)
    return claim_of(owner) > (attempt or 0)


def find_owner(run: Path, problems: list[str]) -> tuple[Owner | None, bool | None]:
    """The process that owns the run, and whether it lives; None if unknown."""
    try:
        owner = newest_owner(run)
        if owner is None:
            return None, None
        elsewhere = owner.machine != this_process().machine
        return owner, is_alive(run, owner, lease=_lease(run) if elsewhere else LEASE)
    except (OSError, TypeError, ValueError) as error:
        problems.append(f"attempts cannot be read: {error}")
        return None, None


def _lease(run: Path) -> float:
    recipe = RunFiles(run).recipe
    try:
        return _lease_in(recipe, recipe.stat().st_mtime_ns)
    except OSError:
        return LEASE


@cache
def _lease_in(recipe: Path, changed: int) -> float:
    from adafilter_dist.recipe import load_recipe  # late: it takes longer than all the rest
    from adafilter_dist.recipe.sections.base import seconds

    try:
        return seconds(load_recipe([f"recipe={recipe}"]).checkpoint.lease)
    except UserError:
        return LEASE
