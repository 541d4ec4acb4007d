"""The one object the training loop tells its figures to."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from adafilter_dist.metrics.boards import Board, TensorBoard, WeightsAndBiases
from adafilter_dist.metrics.progress import ConsoleProgress
from adafilter_dist.recipe import Recipe
from adafilter_dist.run.files import RunFiles, new_event
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.json_lines import JsonLines, cut_after
from adafilter_dist.system.progress import Done, no_counting


class Metrics:
    """Console, metrics.jsonl, events.jsonl and boards of one run; only rank 0 writes.

    ``step`` and ``evaluated`` (epochs) are those of the checkpoint the run starts from: rows past
    them are cut. Rows are kept by the names given; the console shows ``loss``, ``accuracy``,
    ``images_per_second`` and ``data_wait`` (share of time spent waiting for data) of a training
    row. A disk that refuses is told of once and tried again; training does not end by it.
    """

    def __init__(
        self,
        run_dir: Path | None,
        recipe: Recipe,
        console: Console,
        *,
        rank: int,
        total_steps: int,
        step: int = 0,
        evaluated: int = 0,
    ) -> None:
        self._active = rank == 0
        self._rows: JsonLines | None = None
        self._run: RunFiles | None = None
        self._kept_events: list[dict[str, Any]] = []
        self._boards: list[Board] = []
        self._progress: ConsoleProgress | None = None
        self._printed_troubles: set[str] = set()
        self.files: list[Path] = []
        """What must be durable before a checkpoint says that its rows are there."""
        if not self._active:
            return
        log: Path | None = None
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            ending = step == total_steps
            run = self._run = RunFiles(run_dir)
            cut_after(run.metrics, step, evaluated, ending=ending)
            self._rows = JsonLines(run.metrics)
            self._boards = _boards(run_dir, recipe, console, step)
            self.files = [run.metrics]
            log = run.log
        self._progress = ConsoleProgress(
            console, epochs=recipe.train.epochs, total_steps=total_steps, step=step, log=log
        )

    def advance(self, step: int, epoch: int) -> None:
        """A step is done; moves the console's bar and needs no figures from the device."""
        if self._progress is not None:
            self._progress.advance(step, epoch)

    def train(self, step: int, epoch: int, row: Mapping[str, Any]) -> None:
        """Figures of training up to ``step`` (steps done, from 1) in ``epoch`` (from 0)."""
        if self._progress is not None:
            self._progress.train(step, epoch, row)
        self._write("train", step, epoch, {}, row)

    def evaluation(self, step: int, epoch: int, split: str, row: Mapping[str, Any]) -> None:
        """Figures of an evaluation of ``split`` after ``step`` steps."""
        if self._progress is not None:
            self._progress.evaluation(step, epoch, split, row)
        self._write(split, step, epoch, {"split": split}, row)

    def event(self, kind: str, **fields: Any) -> None:
        """Something that happened to the run (start, stop ...), on disk at once; never cut.

        May be called after ``close``, for how the run ended.
        """
        if self._run is None:
            return
        self._kept_events.append(new_event(kind, **fields))
        try:
            while self._kept_events:
                self._run.add_event(self._kept_events[0])
                del self._kept_events[0]
        except OSError as error:
            self._trouble(f"events.jsonl cannot be written: {error}")

    def counting(self, what: str, total: int) -> AbstractContextManager[Done]:
        """Show how far an evaluation of ``total`` pictures is, on rank 0, within a ``with``."""
        if self._progress is None:
            return no_counting(what, total)
        return self._progress.counting(what, total)

    def say(self, line: str) -> None:
        """Print a line above the progress display, on rank 0."""
        if self._progress is not None:
            self._progress.say(line)

    def close(self) -> None:
        """End the display and write out what is buffered; closing twice is fine."""
        if self._progress is not None:
            self._progress.close()
        if self._rows is not None:
            self._rows.close()
        while self._boards:
            with contextlib.suppress(OSError):
                self._boards.pop().close()

    def _trouble(self, line: str) -> None:
        if line not in self._printed_troubles:
            self._printed_troubles.add(line)
            self.say(f"warning: {line}; training goes on, what is missing is tried again")

    def _write(
        self, kind: str, step: int, epoch: int, extra: Mapping[str, Any], row: Mapping[str, Any]
    ) -> None:
        if self._rows is None:
            return
        label = "evaluation" if extra else kind
        head = {"kind": label, "step": step, "epoch": epoch, "time": round(time.time(), 3)}
        self._rows.write({**head, **extra, **row})
        if self._rows.trouble:
            self._trouble(f"metrics.jsonl cannot be written: {self._rows.trouble}")
        values = {
            f"{kind}/{name}": float(value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for board in list(self._boards):
            try:
                board.write(step, values)
            except OSError as error:
                self._boards.remove(board)
                self.say(f"warning: {type(board).__name__} is given up: {error}")


def _boards(run_dir: Path, recipe: Recipe, console: Console, step: int) -> list[Board]:
    """The boards asked for. A missing package is only reported if the user named its board."""
    boards: list[Board] = []
    for name in recipe.log.to:
        try:
            if name == "tensorboard":
                boards.append(TensorBoard(run_dir, step))
            else:
                boards.append(
                    WeightsAndBiases(run_dir, recipe.name, recipe.model_dump(mode="json"))
                )
        except ImportError:
            if "to" in recipe.log.model_fields_set:
                print_plain(
                    console,
                    f"log.to: {name} is not installed, going on without it; "
                    f"pip install 'adafilter-dist[{name}]'",
                )
    return boards
