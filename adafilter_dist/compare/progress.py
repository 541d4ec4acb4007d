"""The console of a comparison: a line for each run; counts and time left as a bar or in lines."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from adafilter_dist.compare.runs import PlannedRun, Standing
from adafilter_dist.compare.tuning import TrialOutcome
from adafilter_dist.recipe.word import as_word
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.json_files import number
from adafilter_dist.system.progress import duration

_SECONDS_BETWEEN_LINES = 300.0


class CompareProgress:
    """Counts trials and runs as they end; ``workers`` run at once.

    ``clock`` gives seconds; where the console is no terminal, a line is due every five minutes in
    which no run ended.
    """

    def __init__(
        self, console: Console, workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._workers, self._clock = console, workers, clock
        self._total = {"trial": 0, "final": 0}
        self._done = {"trial": 0, "final": 0}
        self._began: dict[PlannedRun, float] = {}
        self._seconds: list[float] = []
        self._said_at = clock()
        self._live: Progress | None = None
        if console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("compare", total=None, figures="")
            self._live.start()

    def known(self, run: PlannedRun, state: Standing) -> None:
        """A run that there is, and how far it was when the command began."""
        self._total[run.kind] += 1
        self._done[run.kind] += state != "open"

    def started(self, run: PlannedRun) -> None:
        """A run starts."""
        self._began[run] = self._clock()

    def ended(
        self, run: PlannedRun, state: Standing, failure: str, outcome: TrialOutcome | None
    ) -> None:
        """A run ended; ``failure`` says why it is not done, ``outcome`` is that of a trial."""
        took = self._clock() - self._began.pop(run)
        if state != "open":
            self._done[run.kind] += 1
            self._seconds.append(took)
        how = state if not failure else f"not finished: {failure}"
        if outcome is not None and outcome.accuracy is not None:
            settings = " ".join(f"{key}={as_word(v)}" for key, v in outcome.settings.items())
            how = f"validation {outcome.accuracy:.1%}, {settings}"
        elif state == "finished" and (top1 := test_accuracy(run)) is not None:
            how = f"test {top1:.1%}"
        self.say(f"{run.title}: {how}  ({duration(took)}; {self.counts()})")

    def counts(self) -> str:
        """``trials 3/8, runs 0/10, 0:12:00 left``."""
        parts = [
            f"{name} {self._done[kind]}/{self._total[kind]}"
            for kind, name in (("trial", "trials"), ("final", "runs"))
            if self._total[kind]
        ]
        if self._seconds:
            left = sum(self._total.values()) - sum(self._done.values())
            mean = sum(self._seconds) / len(self._seconds)
            parts.append(f"{duration(left * mean / self._workers)} left")
        return ", ".join(parts)

    def refresh(self) -> None:
        """Bring the bar up to date, or print the line that is due."""
        figures = f"{self.counts()}, {len(self._began)} running"
        if self._live is not None:
            self._live.update(
                self._task,
                total=sum(self._total.values()),
                completed=sum(self._done.values()),
                figures=figures,
            )
        elif self._clock() - self._said_at >= _SECONDS_BETWEEN_LINES:
            self.say(figures)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self._said_at = self._clock()
        print_plain(self._console, line)

    def close(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()


def test_accuracy(run: PlannedRun) -> float | None:
    """Top-1 on the test set, as the run's metrics have it; None before."""
    rows = RunFiles(run.path).read_metrics()
    return next((number(row, "top1") for row in reversed(rows) if row.get("split") == "test"), None)
