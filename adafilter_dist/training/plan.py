"""What an attempt is going to do: which run, as which recipe, from how far."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.changes import RecipeDecision, begin, check_changes
from adafilter_dist.run.folder import find_run
from adafilter_dist.system.json_files import Row, read_object, whole
from adafilter_dist.training.run_data import check_run_data, read_run_data


@dataclass(frozen=True)
class AttemptPlan:
    """Which run, as which recipe; ``last_step`` is how far earlier attempts came.

    ``data`` is the fingerprint of the data that the run began on, if it is known. ``environment``
    is that of the last attempt, if it measured how many micro-batches share a forward; ``loader``
    is what decoded in that attempt.
    """

    path: Path
    decision: RecipeDecision
    before: Recipe | None
    done: bool
    last_step: int
    data: str | None = None
    notices: tuple[str, ...] = ()
    environment: Row = field(default_factory=dict)
    loader: str | None = None


def make_plan(recipe: Recipe, allow: Collection[str]) -> AttemptPlan:
    """Find the run of ``recipe`` and check what differs from it; writes nothing.

    Raises UserError for what may not change, unless ``allow`` names it.
    """
    run = find_run(recipe)
    before = run.known_recipe(allow)
    decision = check_changes(before, recipe, allow, run=run.path) if before else begin(recipe)
    status = run.read_status()
    longer = before is not None and recipe.train.epochs > before.train.epochs
    rows = [whole(row, "step") or 0 for row in run.files.read_metrics()]
    done = status.get("state") == "finished" and not longer
    if done and run.files.checkpoint_folders():
        # Imported here: what is said of a run that is not finished need not wait for torch.
        from adafilter_dist.training.best import best_damage

        # A finished run without best/ is not done: its end is repeated from a checkpoint.
        done = not best_damage(run.path)
    known = read_run_data(run.path)
    environment = read_object(run.files.environment, [])
    measured = before is not None and before.train.micro_batches_per_forward == "auto"
    return AttemptPlan(
        run.path,
        decision,
        before,
        done=done,
        last_step=max([whole(status, "step") or 0, *rows]),
        data=known.fingerprint if known else None,
        notices=check_run_data(run.path, decision.recipe, recipe.resume, allow, done=done),
        environment=environment if measured else {},
        loader=environment.get("loader"),
    )
