"""What lies in a run folder: its names, and how they are written and read.

recipe.yaml, recipe.json     the recipe (kept_recipe)
environment.json, data.json  what the numbers depend on beside the recipe
gates_at_start.npz           gates of a few pictures before the first step (evaluate.gate_probe)
status.json                  how the run stands, for other programs
submitted.json, jobs/        the job that the run was given to (submission)
attempts/N/                  who had the run, and how that ended (ownership)
metrics.jsonl, events.jsonl  figures of each step; starts, stops and changes
checkpoints/, best/          what training goes on from; the export of the best epoch
log.txt, figures/            what rank 0 said, and found
test-outcomes.safetensors    the best model's prediction for each test picture (report.outcomes)
test-pictures.npz            how sure it was, and what its gates chose (report.test_pictures)
report.html                  the run on one page (report.page)
class-gates.safetensors      the best model's gates by class (evaluate.class_gates)
export/                      what `adafilter export` wrote

Whoever reads must expect a file that is missing or damaged: then there is nothing in it, and
``problems`` says why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adafilter_dist.system.files import write_json
from adafilter_dist.system.json_files import Row, read_object
from adafilter_dist.system.json_lines import append, read_lines, read_rows
from adafilter_dist.system.sealed_files import DamagedError, read_manifest

# What makes a folder a run's, even if half of it is missing.
_MARKS = ("recipe.yaml", "status.json", "attempts")
CLASS_GATES = "class-gates.safetensors"
"""Of a run; exports hold a copy under the same name."""
PARTS = (
    *(*_MARKS, "recipe.json", "environment.json", "data.json", "submitted.json"),
    *("gates_at_start.npz", "test-outcomes.safetensors", "test-pictures.npz", "report.html"),
    *("metrics.jsonl", "events.jsonl", "log.txt", "evaluation-*.json"),
    *("checkpoints", "best", "figures", "compact", "export", "jobs", "code"),
    *("tensorboard", "wandb", CLASS_GATES),
    *("events.out.tfevents.*", ".*.tmp", ".*.gone"),
)
"""Patterns of all names that may lie in a run folder; `adafilter rm` deletes no folder with others.

A new file's name goes in here too.
"""


class AttemptFiles:
    """attempts/N of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = folder / "owner.json"
        self.alive = folder / "alive"
        self.ended = folder / "ended.json"
        self.hung = folder / "hung.json"

    def read_owner(self) -> Row:
        """Who claimed the attempt; empty where that cannot be read any more."""
        return read_object(self.owner, [])

    def read_end(self) -> Row:
        """``state``, ``reason`` and ``step`` at which the attempt ended; empty while it has not."""
        return read_object(self.ended, [])

    def write_end(self, state: str, reason: str, step: int | None) -> None:
        """Note how the attempt ended."""
        write_json(self.ended, {"state": state, "reason": reason, "step": step})

    def stacks(self, rank: int) -> Path:
        """Where a rank writes the stacks of its threads, once a rank hangs."""
        return self.folder / f"stacks.{rank}.txt"

    def read_failures(self) -> list[Row]:
        """What ranks that died of an exception of their own have left, in the order of names."""
        return [read_object(path, []) for path in sorted(self._failures())]

    def write_failure(self, rank: int, note: Row) -> None:
        """Leave the last words of a rank."""
        write_json(self.folder / f"failed.{rank}.json", note)

    def has_failures(self) -> bool:
        """Whether a rank has left last words."""
        return any(self._failures())

    def _failures(self) -> Iterator[Path]:
        return self.folder.glob("failed.*.json")


class RunFiles:
    """Where a run's files are, and how status, metrics, events and attempts are read and noted.

    The recipe is read and written by `kept_recipe`, the other files by the modules that make them.
    Making this object makes no file and no folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.recipe = run / "recipe.yaml"
        self.kept_recipe = run / "recipe.json"
        self.environment = run / "environment.json"
        self.gates_at_start = run / "gates_at_start.npz"
        self.data = run / "data.json"
        self.status = run / "status.json"
        self.submitted = run / "submitted.json"
        self.attempts = run / "attempts"
        self.metrics = run / "metrics.jsonl"
        self.events = run / "events.jsonl"
        self.log = run / "log.txt"
        self.checkpoints = run / "checkpoints"
        self.best = run / "best"
        self.best_config = self.best / "config.json"
        self.compact = run / "compact"
        self.test_outcomes = run / "test-outcomes.safetensors"
        self.test_pictures = run / "test-pictures.npz"
        self.page = run / "report.html"
        self.figures = run / "figures"
        self.summary = self.figures / "summary.txt"
        self.summary_numbers = self.figures / "summary.json"
        self.gates = self.figures / "gates.txt"

    def marks(self) -> int:
        """How many of three names there are, of which a run has one at least."""
        return sum((self.run / name).exists() for name in _MARKS)

    def evaluation(self, split: str, other_data: str = "") -> Path:
        """Where `adafilter evaluate` writes; ``other_data`` is the fingerprint of data not its own.

        Of that the first eight letters are part of the name.
        """
        return self.run / f"evaluation-{split}{other_data and '-' + other_data[:8]}.json"

    # -- how the run stands

    def read_status(self, problems: list[str] | None = None) -> Row:
        """status.json; empty where there is none."""
        return read_object(self.status, [] if problems is None else problems)

    def write_status(self, status: Row) -> None:
        """Replace status.json as a whole. Raises OSError."""
        write_json(self.status, status)

    def note_state(self, before: Row, state: str, reason: str) -> None:
        """status.json as it was ``before``, with another state and a fresh heartbeat."""
        self.write_status({**before, "state": state, "reason": reason, "heartbeat": time.time()})

    # -- what happened

    def read_metrics(self, problems: list[str] | None = None) -> list[Row]:
        """The rows of metrics.jsonl. Without ``problems`` a disk that refuses is an OSError."""
        if problems is None:
            return read_lines(self.metrics)
        return read_rows(self.metrics, problems)

    def read_events(self, problems: list[str] | None = None) -> list[Row]:
        """The rows of events.jsonl. Without ``problems`` a disk that refuses is an OSError."""
        if problems is None:
            return read_lines(self.events)
        return read_rows(self.events, problems)

    def add_event(self, event: Row) -> None:
        """Add one of :func:`new_event` to events.jsonl, on disk at once. Raises OSError."""
        append(self.events, event)

    # -- attempts and checkpoints

    def attempt(self, number: int) -> AttemptFiles:
        """The folder of an attempt."""
        return AttemptFiles(self.attempts / str(number))

    def checkpoint_folders(self) -> list[Path]:
        """All published checkpoints, not verified, the newest first."""
        return sorted(self.checkpoints.glob("step-*"), reverse=True)

    def checkpoint_manifests(self) -> Iterator[tuple[Path, Row]]:
        """The checkpoints whose manifest is whole, with what it says, the newest first."""
        for folder in self.checkpoint_folders():
            with suppress(DamagedError):
                yield folder, read_manifest(folder / "manifest.json")


def new_event(kind: str, **fields: Any) -> Row:
    """A row of events.jsonl, of now."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": now, "kind": kind, **fields}
