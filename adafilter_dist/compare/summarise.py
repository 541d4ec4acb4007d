"""From what the runs of a comparison came to, to its rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from adafilter_dist.compare.collected import Collected
from adafilter_dist.compare.rows import ContenderResult, Cost, Results
from adafilter_dist.compare.statistics import (
    Rank,
    bootstrap_interval,
    holm,
    mean_over_seeds,
    paired_difference,
    ranks,
)
from adafilter_dist.compare.tuning_summary import summarise_trials
from adafilter_dist.report.outcomes import PictureOutcomes


def summarise(
    name: str, base_name: str, seeds: Sequence[int], collected: Sequence[Collected]
) -> Results:
    """Statistics of what was collected."""
    base = next(each for each in collected if each.name == base_name)
    every = [outcomes for each in collected for outcomes in each.finished.values()]
    stores = {outcomes.test_pictures for outcomes in every}
    same = len(stores) == 1 and "" not in stores

    # Each contender beside the base, over the seeds that both have on the same data.
    rows = [_row(each, base, same) for each in collected]

    # Correction for the number of contenders.
    known = [i for i, row in enumerate(rows) if row.difference and row.difference.p is not None]
    values = [estimate.p or 0.0 for i in known if (estimate := rows[i].difference)]
    for i, p in zip(known, holm(values), strict=True):
        rows[i] = replace(rows[i], p=p)

    # Ranks, over the seeds that all have.
    begun = {
        each.name: each.finished for each in collected if each.finished and not each.references
    }
    common: list[int] = []
    if len(begun) > 1:
        every_run = [[runs.get(seed) for runs in begun.values()] for seed in seeds]
        common = [seed for seed, runs in zip(seeds, every_run, strict=True) if _same_data(runs)]
    if common:
        ranks = _ranks(begun, common, same)
        rows = [replace(row, rank=ranks.get(row.name)) for row in rows]
    runs = [run for each in collected for run in each.finals]
    return Results(
        name=name,
        base=base_name,
        seeds=tuple(seeds),
        pictures=len(every[0].labels) if every else None,
        same_pictures=same,
        rank_seeds=tuple(common),
        contenders=tuple(rows),
        planned=len(runs),
        missing=sum(run.outcomes is None for run in runs),
    )


def _row(each: Collected, base: Collected, same_pictures: bool) -> ContenderResult:
    finished = each.finished
    by_seed = {seed: float(outcomes.correct.mean()) for seed, outcomes in finished.items()}
    problems = [f"seed {run.seed}: {run.problem}" for run in each.finals if run.problem]
    problems += [f"trial {trial.number}: {trial.problem}" for trial in each.trials if trial.problem]

    difference = bootstrap = None
    if each.name != base.name:
        beside = each.references or base.finished
        both = [seed for seed in finished if seed in beside]
        other = [s for s in both if not _same_data([finished[s], beside[s]])]
        problems += [f"seed {s}: on other data than {base.name}, not compared" for s in other]
        pairs = [(finished[s].correct, beside[s].correct) for s in both if s not in other]
        if pairs:
            ours, theirs = zip(*pairs, strict=True)
            difference = paired_difference(ours, theirs, same_pictures=same_pictures)
            if same_pictures and len(pairs) > 1:
                bootstrap = bootstrap_interval(np.stack(ours).astype(float) - np.stack(theirs))
    return ContenderResult(
        name=each.name,
        title=each.title,
        by_seed=by_seed,
        accuracy=mean_over_seeds(list(by_seed.values())) if by_seed else None,
        loss=mean_over_seeds([float(outcomes.losses.mean()) for outcomes in finished.values()])
        if finished
        else None,
        difference=difference,
        p=None,
        bootstrap=bootstrap,
        rank=None,
        cost=_cost(each, base),
        tuning=summarise_trials(each.trials),
        problems=tuple(problems),
        reference="the best of its trials" if each.references else "",
    )


def _same_data(outcomes: Sequence[PictureOutcomes | None]) -> bool:
    """Whether all are there, of the same training and test data."""
    first = outcomes[0]
    return first is not None and all(
        one is not None
        and (one.data, one.test_pictures, one.classes)
        == (first.data, first.test_pictures, first.classes)
        and np.array_equal(one.labels, first.labels)
        for one in outcomes
    )


def _ranks(
    begun: Mapping[str, Mapping[int, PictureOutcomes]], seeds: Sequence[int], same_pictures: bool
) -> dict[str, Rank]:
    right = {name: [runs[seed].correct for seed in seeds] for name, runs in begun.items()}
    means = {name: fmean(float(each.mean()) for each in runs) for name, runs in right.items()}
    pairs = {
        (one, other): paired_difference(right[one], right[other], same_pictures=same_pictures)
        for one, other in itertools.combinations(right, 2)
    }
    return ranks(means, pairs)


_COSTS = ("step_seconds", "step_cpu_seconds", "peak_memory", "trained_parameters")


def _cost(each: Collected, base: Collected) -> Cost | None:
    own, theirs = _cost_figures(each), _cost_figures(base)
    rows = [run.cost for run in each.finals if run.cost]
    if not rows:
        return None
    relative = {}
    for name in _COSTS:
        a, b = own[name], theirs[name]
        if a is not None and b:
            relative[name] = a / b
    return Cost(
        runs=len(rows), memory_of=str(rows[0].get("memory_of", "")), relative=relative, **own
    )


def _cost_figures(each: Collected) -> dict[str, float | None]:
    rows = [run.cost for run in each.finals if run.cost]
    figures: dict[str, float | None] = {}
    for name in _COSTS:
        values = [float(row[name]) for row in rows if row.get(name) is not None]
        figures[name] = (max if name == "peak_memory" else fmean)(values) if values else None
    return figures
