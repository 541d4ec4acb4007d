"""How a launcher stops an attempt: the flag, what a signal means there, when a run is given up."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import owners
from adafilter_dist.system.json_files import text
from adafilter_dist.training.preemption import StopFlag


class GivenUpError(UserError):
    """A run that was restarted again and again without progress."""

    exit_code = 1


@dataclass
class StopPolicy:
    """What the launcher knows of stops; the defaults are those of a plain process.

    ``explain`` turns a signal's name into what happened, as far as the cluster knows. ``grace``:
    seconds between a preemption's first signal and the kill; None if unknown. ``max_restarts``: the
    run is given up after this many restarts in a row without progress; None for never.
    ``after_hang`` is called on one rank, with the reason, where a rank hangs and all will end.
    """

    stop: StopFlag = field(default_factory=StopFlag)
    explain: Callable[[str], str] = str
    grace: float | None = None
    max_restarts: int | None = None
    after_hang: Callable[[str], None] = lambda reason: None

    def stop_takes(self, seconds: float, every: int | str) -> str:
        """Note how long a stop takes; returns a warning, once, if a preemption leaves less time.

        ``every`` is how often the run is saved: that much work a preemption then costs.
        """
        first, self.stop.needs = not self.stop.needs, seconds
        if not first or self.grace is None or seconds <= self.grace:
            return ""
        return (
            f"to stop and save takes {seconds:.0f} s, and a preemption leaves {self.grace:.0f} s: "
            f"each costs the steps since the last save (checkpoint.every={every}); save more often"
        )


def ended_before(run: Path, attempt: int) -> str:
    """How the attempt before this one ended: its reason, or "killed"; empty if there was none."""
    if attempt < 2:
        return ""
    ended = RunFiles(run).attempt(attempt - 1).read_end()
    state, reason = text(ended, "state"), text(ended, "reason")
    return reason or state or "killed"


def require_progress(run: Path, attempt: int, step: int, allowed: int) -> None:
    """GivenUpError if ``allowed`` restarts of this job in a row have begun at ``step``."""
    by_number = {owner.attempt: owner for owner in owners(run)}
    job = by_number[attempt].job
    started = {
        row.get("attempt"): row.get("step")
        for row in RunFiles(run).read_events()
        if row.get("kind") == "start"
    }
    fruitless = 0  # attempts that left a checkpoint behind let the next one start further on
    for number in range(attempt - 1, 0, -1):
        owner = by_number.get(number)
        # One that was killed before it had started has no step: nor has it made progress.
        if owner is None or owner.job != job or started.get(number, step) != step:
            break
        fruitless += 1
    if job is not None and fruitless >= allowed:
        times = "once" if fruitless == 1 else f"{fruitless} times"
        raise GivenUpError(
            f"{run} was started {times} at step {step} and never came to its next "
            "checkpoint: given up. Save more often (checkpoint.every=...) or ask for more time "
            f"(launch.time=...), then: adafilter submit resume={shlex.quote(str(run))}"
        )
