"""Progress of long work that is counted: a bar on a terminal, a plain line now and then elsewhere.

`counting` shows the work of a command. Training has a display of its own
(`metrics/progress.py`), and gives a `Counting` that shows work there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from adafilter_dist.system.console import print_plain

SECONDS_BETWEEN_LINES = 30.0

Done = Callable[[int], None]
"""Takes how much of the work is done so far."""
Counting = Callable[[str, int], AbstractContextManager[Done]]
"""Opens a display for work of so many parts: ``with counting("evaluating", 500) as done:``."""


def duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def time_left(done: int, total: int, seconds: float) -> str:
    """``, 120/s, 1:40 left`` after ``seconds`` of work; empty where nothing is done yet."""
    rate = done / max(seconds, 1e-9)
    return f", {rate:,.0f}/s, {duration((total - done) / rate)} left" if done else ""


@contextmanager
def no_counting(what: str, total: int) -> Iterator[Done]:
    """Shows nothing."""
    yield lambda done: None


@contextmanager
def counting(
    console: Console,
    what: str,
    total: int,
    unit: str = "pictures",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Done]:
    """Yields a function to be told how many of ``total`` are done so far.

    On a terminal it is a bar with the count, the rate and the time left, which vanishes at the end;
    elsewhere a line is printed every 30 s. A quiet console shows nothing. ``clock`` gives seconds.
    """
    if console.quiet:
        yield lambda done: None
        return
    if not console.is_terminal:
        lines = CountedLines(what, total, unit, clock)

        def print_due(done: int) -> None:
            if line := lines.due(done):
                print_plain(console, line)

        yield print_due
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} " + f"{unit}/s", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="-")
        start = clock()

        def redraw(done: int) -> None:
            rate = done / max(clock() - start, 1e-9)
            bar.update(task, completed=done, rate=f"{rate:,.0f}")

        yield redraw


class CountedLines:
    """Says every 30 s how far counted work is, from when it was made."""

    def __init__(
        self, what: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._start = self._last = clock()

    def due(self, done: int) -> str | None:
        """The line, where one is due."""
        now = self._clock()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return None
        self._last = now
        rest = time_left(done, self._total, now - self._start)
        return f"{self._what}: {done:,} of {self._total:,} {self._unit}{rest}"
