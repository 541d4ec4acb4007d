"""Finished runs beside the first of them, picture by picture: for their page.

Runs whose recipes differ in the seed alone are one contender.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from adafilter_dist.compare.statistics import bootstrap_interval, paired_difference
from adafilter_dist.recipe.identity import numbers_of
from adafilter_dist.report.page.comparison import Paired, run_names
from adafilter_dist.report.page.run_record import RunRecord

_OVER_PICTURES = "One seed: interval by bootstrap over pictures, without the spread between seeds"
_OVER_SEEDS = "Several seeds: Student's t interval over seeds and pictures"


def paired_runs(runs: Sequence[RunRecord]) -> list[Paired]:
    """The difference of each contender to the first run's, paired by seed and picture.

    A contender whose seeds are others than the base's is compared by their order.
    """
    names = dict(zip(map(id, runs), run_names(runs), strict=True))
    contenders: dict[str, list[RunRecord]] = {}
    for run in runs:
        contenders.setdefault(_key(run), []).append(run)
    base, *others = contenders.values()
    return [_paired(base, other, names) for other in others]


def _key(run: RunRecord) -> str:
    numbers: dict[str, Any] = numbers_of(run.recipe)
    return json.dumps({**numbers, "seed": None}, sort_keys=True)


def _name(runs: Sequence[RunRecord], names: dict[int, str]) -> str:
    if len(runs) == 1:
        return names[id(runs[0])]
    return f"{runs[0].title}, {len(runs)} seeds"


def _paired(base: Sequence[RunRecord], other: Sequence[RunRecord], names: dict[int, str]) -> Paired:
    name, base_name = _name(other, names), _name(base, names)
    seeds = {run.recipe.seed: run for run in base}
    pairs = [(run, seeds[run.recipe.seed]) for run in other if run.recipe.seed in seeds]
    if not pairs:
        pairs = list(zip(other, base, strict=False))
    ours, theirs, stores = [], [], set()
    for run, beside in pairs:
        mine, its = run.outcomes, beside.outcomes
        if mine is None or its is None:
            missing = run if mine is None else beside
            problem = f"not compared: {missing.folder} has no outcomes of test pictures"
            return Paired(
                name, base_name, problem=f"{problem}; adafilter evaluate {missing.folder}"
            )
        same_store = mine.test_pictures == its.test_pictures != ""
        if not (same_store or mine.data == its.data) or len(mine.labels) != len(its.labels):
            return Paired(name, base_name, problem="not compared: tested on other pictures")
        ours.append(mine.correct)
        theirs.append(its.correct)
        stores.add(mine.test_pictures)
    gained = sum(int((a & ~b).sum()) for a, b in zip(ours, theirs, strict=True))
    lost = sum(int((b & ~a).sum()) for a, b in zip(ours, theirs, strict=True))
    estimate = paired_difference(ours, theirs, same_pictures=len(stores) == 1)
    low, high, how = estimate.low, estimate.high, _OVER_SEEDS
    if low is None or high is None:
        low, high = bootstrap_interval(np.stack(ours).astype(float) - np.stack(theirs))
        how = _OVER_PICTURES
    return Paired(
        name=name,
        base=base_name,
        value=estimate.value,
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        pictures=len(ours[0]),
        seeds=len(pairs),
        how=how,
    )
