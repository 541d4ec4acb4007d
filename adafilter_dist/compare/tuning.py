"""What tuning chooses: the trial with the best validation, a function of finished trials alone.

The choice is kept in chosen/<contender>.json when the first final run of the contender starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.runs import PlannedRun, standing, trials_of, why_open
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.word import as_word
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import make_folder, write_json
from adafilter_dist.system.json_files import number, read_object, whole


@dataclass(frozen=True)
class TrialOutcome:
    """A trial that is over: ``accuracy`` and ``loss`` of its best validation, None if it diverged.

    Accuracy is top-1 as a share.
    """

    k: int
    settings: dict[str, Any]
    accuracy: float | None
    loss: float | None

    @property
    def rank(self) -> tuple[float, float, int]:
        """The smaller the better: accuracy, then loss, then the order of the design."""
        accuracy = -math.inf if self.accuracy is None else self.accuracy
        return (-accuracy, math.inf if self.loss is None else self.loss, self.k)


@dataclass(frozen=True)
class Choice:
    """The settings of a contender's final runs; ``trial`` is None where nothing was tuned."""

    contender: str
    trial: int | None
    settings: dict[str, Any]
    outcomes: tuple[TrialOutcome, ...] = ()

    @property
    def line(self) -> str:
        """For people: which trial, and what it set."""
        words = " ".join(f"{key}={as_word(value)}" for key, value in self.settings.items())
        diverged = sum(outcome.accuracy is None for outcome in self.outcomes)
        more = f"; {diverged} of {len(self.outcomes)} trials diverged" if diverged else ""
        if self.trial is None:
            return f"{self.contender}: not tuned"
        best = self.outcomes[self.trial].accuracy
        return f"{self.contender}: trial {self.trial}, validation {best:.1%}, {words}{more}"


def outcome_of(plan: Plan, run: PlannedRun) -> TrialOutcome | None:
    """The outcome of a trial; None while it is not over."""
    state = standing(run)
    if state == "open":
        return None
    settings = plan.contender(run.contender).settings(plan.design[run.number])
    best: tuple[float, float] | None = None
    if state == "finished":
        for row in RunFiles(run.path).read_metrics():
            top1, loss = number(row, "top1"), number(row, "loss")
            # The first of equal epochs, which best/ holds.
            if row.get("split") == "val" and top1 is not None and (best is None or top1 > best[0]):
                best = top1, math.inf if loss is None else loss
    if best is None:
        return TrialOutcome(run.number, settings, None, None)
    return TrialOutcome(run.number, settings, best[0], None if math.isinf(best[1]) else best[1])


def best_trial(outcomes: Sequence[TrialOutcome]) -> TrialOutcome | None:
    """The best of them; None where all have diverged."""
    best = min(outcomes, key=lambda outcome: outcome.rank)
    return None if best.accuracy is None else best


def choose(plan: Plan, folder: Path, contender: str) -> Choice:
    """What a contender's final runs are trained with; kept from the first time on.

    Raises UserError while trials are not over, for their number is what makes a comparison fair,
    and where all of them have diverged.
    """
    if not plan.tune:
        return Choice(contender, None, {})
    path = folder / "chosen" / f"{contender}.json"
    kept = _read(path, plan, contender)
    if kept is not None:
        return kept
    outcomes = []
    for run in trials_of(plan, folder, contender):
        outcome = outcome_of(plan, run)
        if outcome is None:
            raise UserError(
                f"{contender}: nothing is chosen, for trial {run.number} is not over "
                f"({why_open(run)}); all contenders have {plan.tune} trials: the same command "
                f"again goes on with it, {run.path}"
            )
        outcomes.append(outcome)
    best = best_trial(outcomes)
    if best is None:
        raise UserError(
            f"{contender}: all {plan.tune} trials diverged, so there is nothing to run on the seeds"
        )
    choice = Choice(contender, best.k, best.settings, tuple(outcomes))
    make_folder(path.parent)
    write_json(path, _to_dict(choice))
    return choice


def _to_dict(choice: Choice) -> dict[str, Any]:
    return {
        "contender": choice.contender,
        "trial": choice.trial,
        "settings": choice.settings,
        "trials": [
            {"k": one.k, "settings": one.settings, "accuracy": one.accuracy, "loss": one.loss}
            for one in choice.outcomes
        ],
    }


def _read(path: Path, plan: Plan, contender: str) -> Choice | None:
    """The choice that was kept; None where there is none, or it is damaged."""
    row = read_object(path, [])
    trial, trials = whole(row, "trial"), row.get("trials")
    if trial is None or not isinstance(trials, list) or len(trials) != plan.tune:
        return None
    settings = plan.contender(contender).settings
    outcomes = tuple(
        TrialOutcome(k, settings(plan.design[k]), number(one, "accuracy"), number(one, "loss"))
        for k, one in enumerate(trials)
    )
    return Choice(contender, trial, outcomes[trial].settings, outcomes)
