"""What an attempt is going to do: which run, as which recipe, from how far."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.metrics import read_lines
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.changes import Verdict, begin, judge
from adafilter_dist.run_folder import find_run


@dataclass(frozen=True)
class Plan:
    """Which run, as which recipe; ``last_step`` is how far the attempts before it came."""

    path: Path
    verdict: Verdict
    before: Recipe | None
    done: bool
    last_step: int


def make_plan(recipe: Recipe, allow: Collection[str]) -> Plan:
    """Find the run of ``recipe`` and judge what differs; writes nothing.

    Raises UserError for what may not change, unless ``allow`` names it.
    """
    run = find_run(recipe)
    before = run.known_recipe(allow)
    verdict = judge(before, recipe, allow, run=run.path) if before else begin(recipe)
    status = run.read_status()
    longer = before is not None and recipe.train.epochs > before.train.epochs
    rows = [row.get("step", 0) for row in read_lines(run.path / "metrics.jsonl")]
    return Plan(
        run.path,
        verdict,
        before,
        done=status.get("state") == "finished" and not longer,
        last_step=max([status.get("step") or 0, *rows]),
    )
