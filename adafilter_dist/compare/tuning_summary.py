"""What tuning chose for a contender, and how much the choice mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from adafilter_dist.compare.collected import Trial

NEAR = 0.01
"""Trials are near the best within so much validation accuracy."""
_FEW = 3


@dataclass(frozen=True)
class TuningSummary:
    """Validation accuracies of the finished trials, as shares: best, median, worst.

    ``near``: how many of them, the best included, are within ``NEAR`` of it. ``chosen`` are the
    settings of the best (of equal ones the one of the smaller loss). ``edges`` says which of these
    are the lowest or highest that were tried, so that better ones may lie beyond.
    """

    planned: int
    finished: int
    chosen: dict[str, float]
    best: float
    median: float
    worst: float
    near: int
    edges: tuple[str, ...]
    validations: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def summarise_trials(trials: Sequence[Trial]) -> TuningSummary | None:
    """None where no trial is finished."""
    done = [(trial, trial.validation) for trial in trials if trial.validation is not None]
    if not done:
        return None
    values = [value for _, value in done]
    chosen, best = max(done, key=lambda one: (one[1], -_loss(one[0])))
    edges = []
    if len(done) >= _FEW:
        for key, value in chosen.settings.items():
            tried = [trial.settings[key] for trial, _ in done]
            if value in (min(tried), max(tried)) and min(tried) < max(tried):
                which = "lowest" if value == min(tried) else "highest"
                edges.append(f"{key}={value:g} is the {which} that was tried")
    return TuningSummary(
        planned=len(trials),
        finished=len(done),
        chosen=chosen.settings,
        best=best,
        median=median(values),
        worst=min(values),
        near=sum(value >= best - NEAR for value in values),
        edges=tuple(edges),
        validations=tuple(values),
    )


def _loss(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss
