"""A comparison in numbers: its rows, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adafilter_dist.compare.statistics import LEVEL, Estimate, Rank
from adafilter_dist.compare.tuning_summary import TuningSummary


@dataclass(frozen=True)
class Cost:
    """Means over ``runs``; times in seconds a step, ``peak_memory`` the most of any run, bytes.

    ``relative`` holds each divided by the base's, where both are known.
    """

    runs: int
    step_seconds: float | None
    step_cpu_seconds: float | None
    peak_memory: float | None
    memory_of: str
    trained_parameters: float | None
    relative: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class ContenderResult:
    """One row of the table; what is not known (yet) is None.

    ``accuracy`` and ``loss`` are those of the test set, accuracies shares in 0..1; ``by_seed`` the
    accuracy of each finished seed. ``difference`` is accuracy minus the base's over the seeds that
    both have (minus that of ``reference``, if it names one), ``p`` its p-value corrected for the
    number of contenders, ``bootstrap`` another interval of it to be compared with. ``problems``
    name the runs and trials that are missing.
    """

    name: str
    title: str
    by_seed: dict[int, float]
    accuracy: Estimate | None
    loss: Estimate | None
    difference: Estimate | None
    p: float | None
    bootstrap: tuple[float, float] | None
    rank: Rank | None
    cost: Cost | None
    tuning: TuningSummary | None
    problems: tuple[str, ...]
    reference: str = ""

    @property
    def differs(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p is not None and self.p < 1 - LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        parts = ("accuracy", "loss", "difference", "rank", "cost", "tuning")
        rows = {name: getattr(self, name) for name in parts}
        return {
            "name": self.name,
            "title": self.title,
            "by_seed": {str(seed): top1 for seed, top1 in self.by_seed.items()},
            **{name: None if part is None else part.to_dict() for name, part in rows.items()},
            "p_corrected": self.p,
            "bootstrap": self.bootstrap,
            "problems": list(self.problems),
            "reference": self.reference,
        }


@dataclass(frozen=True)
class Results:
    """All rows in the plan's order. ``pictures`` of the test set, None before a run is finished.

    ``same_pictures``: the test pictures are the same under every seed. ``rank_seeds`` are the seeds
    that ranks are about: those that every contender with a finished run has. ``missing`` counts
    runs of ``planned`` that have no outcomes.
    """

    name: str
    base: str
    seeds: tuple[int, ...]
    pictures: int | None
    same_pictures: bool
    rank_seeds: tuple[int, ...]
    contenders: tuple[ContenderResult, ...]
    planned: int
    missing: int

    def contender(self, name: str) -> ContenderResult:
        """The row of that name; KeyError if there is none."""
        return {each.name: each for each in self.contenders}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "base": self.base,
            "seeds": list(self.seeds),
            "pictures": self.pictures,
            "same_pictures": self.same_pictures,
            "rank_seeds": list(self.rank_seeds),
            "planned": self.planned,
            "missing": self.missing,
            "contenders": [each.to_dict() for each in self.contenders],
        }
