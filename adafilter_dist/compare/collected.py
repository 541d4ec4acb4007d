"""What the runs of a comparison came to: read from their folders, whatever state they are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adafilter_dist.compare.average_names import AVERAGE_KINDS, split_average
from adafilter_dist.compare.plan import Plan, PlannedContender, final_run
from adafilter_dist.compare.runs import trials_of, why_open
from adafilter_dist.compare.tuning import outcome_of
from adafilter_dist.errors import UserError
from adafilter_dist.report.outcomes import PictureOutcomes, read_test_outcomes
from adafilter_dist.run.files import RunFiles
from adafilter_dist.status.read import read_run
from adafilter_dist.system.json_files import Row, read_object

AVERAGES = "averages"
"""The folder of contenders that are not trained: AVERAGES/NAME/seed-N holds their outcomes."""
REFERENCE = "best-trial"
"""Beside a soup's outcomes: those of the best of the trials that it was made from."""


@dataclass(frozen=True, eq=False)
class FinalRun:
    """One seed of a contender. ``problem`` says why there are no outcomes; empty where there are.

    ``cost`` is that of the run's summary.json, empty where it has none.
    """

    seed: int
    path: Path
    problem: str
    outcomes: PictureOutcomes | None
    cost: Row


@dataclass(frozen=True)
class Trial:
    """A trial of a contender: settings, and accuracy and loss of its best validation.

    Both are None until it is finished.
    """

    number: int
    settings: dict[str, float]
    validation: float | None
    loss: float | None
    problem: str


@dataclass(frozen=True, eq=False)
class Collected:
    """All that is there of a contender, in the order of the plan's seeds and trials.

    ``references``: outcomes to be compared with instead of the base's, by seed.
    """

    name: str
    title: str
    finals: tuple[FinalRun, ...]
    trials: tuple[Trial, ...] = ()
    references: Mapping[int, PictureOutcomes] = field(default_factory=dict)

    @property
    def finished(self) -> dict[int, PictureOutcomes]:
        """The outcomes by seed, of those that are there."""
        return {run.seed: run.outcomes for run in self.finals if run.outcomes is not None}


def collect(folder: Path, plan: Plan) -> list[Collected]:
    """The plan's contenders in their order, then what was averaged from their runs."""
    planned = [
        Collected(
            each.name,
            each.title,
            tuple(_final(final_run(folder, each.name, seed), seed) for seed in plan.seeds),
            tuple(_trials(folder, plan, each)),
        )
        for each in plan.contenders
    ]
    return [*planned, *_averages(folder, plan)]


def _final(path: Path, seed: int) -> FinalRun:
    problem = _state(path)
    outcomes: PictureOutcomes | None = None
    cost: Row = {}
    if not problem:
        try:
            outcomes = read_test_outcomes(path)
        except UserError as error:
            problem = str(error)
        summary: Any = read_object(RunFiles(path).summary_numbers, [])
        cost = summary.get("cost") or {}
    return FinalRun(seed, path, problem, outcomes, cost)


def _trials(folder: Path, plan: Plan, contender: PlannedContender) -> Iterator[Trial]:
    for run in trials_of(plan, folder, contender.name):
        settings = contender.settings(plan.design[run.number])
        outcome = outcome_of(plan, run)
        if outcome is None:
            yield Trial(run.number, settings, None, None, why_open(run))
        else:
            problem = "diverged" if outcome.accuracy is None else ""
            yield Trial(run.number, settings, outcome.accuracy, outcome.loss, problem)


def _state(path: Path) -> str:
    """Why a run is not finished; empty if it is."""
    if not RunFiles(path).marks():
        return "not begun"
    status = read_run(path)
    if status.state == "finished":
        return ""
    return f"{status.state}: {status.reason}" if status.reason else status.state


def _averages(folder: Path, plan: Plan) -> Iterator[Collected]:
    """Of all seeds; soups of the trials' seed, beside the best trial."""
    titles = {each.name: each.title for each in plan.contenders}
    for name in plan.averages:
        contender, kind = split_average(name)
        of_trials = kind != "wise_ft"
        finals, references = [], {}
        for seed in (plan.tune_seed,) if of_trials else plan.seeds:
            path = folder / AVERAGES / name / f"seed-{seed}"
            outcomes, problem = _outcomes(path)
            reference = _outcomes(path / REFERENCE)[0] if of_trials else None
            if reference is not None:
                references[seed] = reference
            finals.append(FinalRun(seed, path, problem, outcomes, {}))
        title = f"{titles.get(contender, contender)} + {AVERAGE_KINDS[kind]}"
        yield Collected(name, title, tuple(finals), (), references)


def _outcomes(path: Path) -> tuple[PictureOutcomes | None, str]:
    if not RunFiles(path).test_outcomes.exists():
        return None, "not averaged yet"
    try:
        return read_test_outcomes(path), ""
    except UserError as error:
        return None, str(error)
