"""The console of a comparison that is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from adafilter_dist.compare.progress import CompareProgress
from adafilter_dist.compare.runs import PlannedRun


class Clock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_five_minutes_in_which_no_run_ended() -> None:
    file, clock = io.StringIO(), Clock()
    progress = CompareProgress(Console(file=file, width=120), workers=1, clock=clock)
    runs = [PlannedRun("trial", "finetune", number, Path(f"/runs/{number}")) for number in (0, 1)]
    for run in runs:
        progress.known(run, "open")
    for number, run in enumerate(runs):
        progress.started(run)
        for _ in range(41 if number == 0 else 20):
            clock.now += 10.0
            progress.refresh()
        progress.ended(run, "finished", "", None)
    assert [line.split("(")[-1] for line in file.getvalue().splitlines()] == [
        "trials 0/2, 1 running",
        "6:50; trials 1/2, 6:50 left)",
        "3:20; trials 2/2, 0:00 left)",
    ]
