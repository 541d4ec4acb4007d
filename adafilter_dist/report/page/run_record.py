"""All that a run folder holds for its page, read whatever is missing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from adafilter_dist.data.stored.prepared import Prepared, open_prepared
from adafilter_dist.errors import UserError
from adafilter_dist.methods.build import METHODS
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.model import AdaFilter
from adafilter_dist.report.outcomes import PictureOutcomes, read_test_outcomes
from adafilter_dist.report.test_pictures import TestPictures, read_test_pictures
from adafilter_dist.run.attempts import Attempt, read_attempts
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.kept_recipe import read_kept
from adafilter_dist.system.json_files import Row, read_object

# What `adafilter evaluate` may have measured since the run ended.
_LATER = ("gates", "gate_movement", "probe", "control")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its folder tells it.

    ``numbers`` is figures/summary.json, empty where the run was not tested; ``outcomes`` and
    ``pictures`` are None then, or in runs of earlier versions. ``prepared`` is None where the
    pictures are not on this machine, or are others than those of the run.
    """

    folder: Path
    recipe: Recipe
    status: Row
    environment: Row
    attempts: Sequence[Attempt]
    events: Sequence[Row]
    rows: Sequence[Row]
    numbers: Row
    outcomes: PictureOutcomes | None
    pictures: TestPictures | None
    prepared: Prepared | None
    classes: Sequence[str]
    problems: Sequence[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The method, as in tables; a gate that is a control is named."""
        return method_title(self.recipe)

    @property
    def label(self) -> str:
        """Title and seed."""
        return f"{self.title}, seed {self.recipe.seed}"

    def curve(self, kind: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of ``key`` in rows of training (``train``) or of a split (``val``)."""
        named = "train" if kind == "train" else "evaluation"
        return [
            (row["step"], float(row[key]))
            for row in self.rows
            if row.get("kind") == named
            and (kind == "train" or row.get("split") == kind)
            and isinstance(row.get("step"), int)
            and isinstance(row.get(key), int | float)
        ]

    def attempt_times(self) -> dict[int, tuple[datetime, datetime | None]]:
        """(begin, last sign of life) of each attempt by its number.

        From what events and metrics say, not from times of files, which change when a run folder is
        copied. The end is None where an attempt left nothing.
        """
        starts = {
            int(event["attempt"]): time
            for event in self.events
            if event.get("kind") == "start"
            and isinstance(event.get("attempt"), int)
            and (time := _when(event.get("time"))) is not None
        }
        signs = sorted(
            time
            for row in (*self.events, *self.rows)
            if row.get("kind") != "start" and (time := _when(row.get("time"))) is not None
        )
        times: dict[int, tuple[datetime, datetime | None]] = {}
        for number, start in starts.items():
            later = [other for n, other in starts.items() if n > number]
            own = [sign for sign in signs if sign >= start and all(sign < t for t in later)]
            times[number] = (start, own[-1] if own else None)
        return times

    def restarts(self) -> list[int]:
        """Steps at which a later attempt went on."""
        return [
            attempt.first_step
            for attempt in self.attempts
            if attempt.number > 1 and attempt.first_step is not None
        ]


def _when(time: object) -> datetime | None:
    """A time in an event (ISO) or a row of metrics (seconds since 1970)."""
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(time, str):
            return datetime.fromisoformat(time).astimezone(UTC)
        if isinstance(time, int | float):
            return datetime.fromtimestamp(time, UTC)
    return None


def method_title(recipe: Recipe) -> str:
    """``AdaFilter``, ``AdaFilter (gate frozen)``, ``plain fine-tuning``."""
    method, title = recipe.method, METHODS[recipe.method.name].title
    if isinstance(method, AdaFilter) and method.gate.mode != "learned":
        title += f" (gate {method.gate.mode})"
    return title


def read_record(run: Path, recipe: Recipe | None = None) -> RunRecord:
    """Read a run folder; UserError where it is none, or its recipe cannot be read."""
    recipe = read_kept(run) if recipe is None else recipe
    files, problems = RunFiles(run), list[str]()
    status = files.read_status(problems)
    rows = files.read_metrics(problems)
    events = files.read_events(problems)
    outcomes = None
    with suppress(UserError):
        outcomes = read_test_outcomes(run)
    pictures = read_test_pictures(run)
    if outcomes is not None and pictures is not None:
        same = (pictures.data, len(pictures.confidences)) == (outcomes.data, len(outcomes.labels))
        pictures = pictures if same else None
    prepared = _prepared(recipe, outcomes)
    config = read_object(files.best_config, [])
    classes = outcomes.classes if outcomes is not None else config.get("classes") or []
    state, reason = str(status.get("state", "unknown")), str(status.get("reason") or "")
    return RunRecord(
        folder=run,
        recipe=recipe,
        status=status,
        environment=read_object(files.environment, problems),
        attempts=read_attempts(run, events, state, reason),
        events=events,
        rows=rows,
        numbers=_numbers(files, problems),
        outcomes=outcomes,
        pictures=pictures,
        prepared=prepared,
        classes=classes,
        problems=problems,
    )


def _numbers(files: RunFiles, problems: list[str]) -> Row:
    """summary.json, with what only a later evaluation measured."""
    own = read_object(files.summary_numbers, problems)
    later = read_object(files.evaluation("test"), problems)
    if not own:
        return later
    return {**own, **{key: later[key] for key in _LATER if not own.get(key) and later.get(key)}}


def _prepared(recipe: Recipe, outcomes: PictureOutcomes | None) -> Prepared | None:
    """The pictures of the test set, if they are here and still the same."""
    if outcomes is None:
        return None
    try:
        prepared = open_prepared(recipe, known=outcomes.data)
    except UserError:
        return None
    return prepared if prepared.fingerprint == outcomes.data else None
