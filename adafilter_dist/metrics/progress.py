"""The console while training: a live line on a terminal, else a plain line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from adafilter_dist.system.console import print_plain
from adafilter_dist.system.progress import (
    SECONDS_BETWEEN_LINES,
    CountedLines,
    Done,
    duration,
    time_left,
)


def describe(row: Mapping[str, Any]) -> str:
    """A row in one short line: accuracies in percent, rates and losses in three digits."""
    parts = []
    for name, form in _SHOWN.items():
        value = row.get(name)
        if value is not None:
            parts.append(form(value))
    return "  ".join(parts)


_SHOWN: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.3f}",
    "accuracy": lambda value: f"accuracy {value:.1%}",
    "top1": lambda value: f"top-1 {value:.1%}",
    "top5": lambda value: f"top-5 {value:.1%}",
    "mean_per_class": lambda value: f"mean per class {value:.1%}",
    "mean_of_domains": lambda value: f"mean of domains {value:.1%}",
    "gate_mean": lambda value: f"gate {value:.2f}",
    "gate_changed": lambda value: f"bits changed {value:.0%}",
    "images_per_second": lambda value: f"{value:,.0f} images/s",
    "data_wait": lambda value: f"data wait {value:.0%}",
}


class ConsoleProgress:
    """Epoch, step, loss, accuracy, images/s, share of time waiting for data, ETA.

    ``clock`` gives seconds; where the console is no terminal a line is due every 30 of them. Lines
    that stay are kept in the file ``log`` too, with the time.
    """

    def __init__(
        self,
        console: Console,
        *,
        epochs: int,
        total_steps: int,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
        log: Path | None = None,
    ) -> None:
        self._console = console
        self._log = log
        self._epochs = epochs
        self._total = total_steps
        self._clock = clock
        self._first_step = step
        self._began = clock()
        self._due = self._began + SECONDS_BETWEEN_LINES
        self._row: Mapping[str, Any] = {}
        self._newest = step, 0  # the step and epoch that were shown last
        self._live: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task(
                f"epoch 1/{epochs}", total=total_steps, completed=step, figures=""
            )
            self._live.start()

    def advance(self, step: int, epoch: int) -> None:
        """``step`` steps are done, the last of them in ``epoch`` (from 0)."""
        self._newest = step, epoch
        head = f"epoch {min(epoch + 1, self._epochs)}/{self._epochs}  step {step}/{self._total}"
        figures = "  ".join(part for part in (describe(self._row), self._eta(step)) if part)
        if self._live is not None:
            self._live.update(self._task, description=head, completed=step, figures=figures)
        elif self._clock() >= self._due:
            self._due = self._clock() + SECONDS_BETWEEN_LINES
            self.say(f"{head}  {figures}")

    def train(self, step: int, epoch: int, row: Mapping[str, Any]) -> None:
        """Newer figures; shown with the next line, which is now for the first of them.

        They may be of a step before the one that was shown last: the line then keeps that number.
        """
        if not self._row:
            self._due = self._clock()
        self._row = row
        self.advance(*max(self._newest, (step, epoch)))

    def evaluation(self, step: int, epoch: int, split: str, row: Mapping[str, Any]) -> None:
        """One line that stays."""
        self.say(f"epoch {epoch + 1}/{self._epochs}  step {step}  {split}: {describe(row)}")

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Done]:
        """Yields a function to be told how many of ``total`` pictures are evaluated so far.

        On a terminal it is a second bar while the work lasts; elsewhere a line is due every 30 s.
        """
        if self._live is None:
            lines = CountedLines(what, total, "pictures", self._clock)

            def say_due(done: int) -> None:
                if line := lines.due(done):
                    self.say(line)

            yield say_due
            return
        live, began = self._live, self._clock()
        task = live.add_task(what, total=total, figures="")

        def redraw(done: int) -> None:
            took = self._clock() - began
            figures = f"{done:,}/{total:,} pictures{time_left(done, total, took)}"
            live.update(task, completed=done, figures=figures)

        try:
            yield redraw
        finally:
            live.refresh()  # short work, too, is seen once
            live.remove_task(task)

    def say(self, line: str) -> None:
        """Print a line as it is (no markup, no wrapping); on a terminal above the live line."""
        print_plain(self._console, line)
        if self._log is not None:
            # A copy for later: what a full disk keeps from it is on the console.
            with contextlib.suppress(OSError), self._log.open("a") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()

    def _eta(self, step: int) -> str:
        # Over this whole process, evaluations included: they will come again.
        done = step - self._first_step
        if done <= 0:
            return ""
        left = (self._clock() - self._began) * (self._total - step) / done
        return f"ETA {duration(left)}"
