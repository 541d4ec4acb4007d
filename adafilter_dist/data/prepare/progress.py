"""Progress of a long pass over pictures: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from adafilter_dist.system.console import print_plain

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to be told how many of ``total`` pictures are done so far."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} pictures/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, rate="-")
            start = time.monotonic()

            def redraw(done: int) -> None:
                rate = done / max(time.monotonic() - start, 1e-9)
                bar.update(task, completed=done, rate=f"{rate:.0f}")

            yield redraw
    else:
        yield _lines(console, what, total)


def _lines(console: Console, what: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            left = (total - done) / max(rate, 1e-9)
            print_plain(
                console, f"{what}: {done:,} of {total:,} pictures, {rate:.0f}/s, {left:.0f} s left"
            )

    return report
