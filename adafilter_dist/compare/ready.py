"""Makes everything ready that the runs of a comparison need, before the first of them starts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.runs import draw_recipes, final_recipe, trial_recipe
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.errors import UserError
from adafilter_dist.launch.checks import Checks
from adafilter_dist.models.backbone.backbones import fetch_weights
from adafilter_dist.recipe.sections.launch import Launch


def make_ready(plan: Plan, folder: Path, console: Console, *, alone: bool) -> None:
    """Fetch weights, prepare each draw of the pictures, then check one run of each contender.

    ``alone``: each run is one process here, whatever ``launch`` says. Raises UserError with the
    mistakes of all contenders.
    """
    for number, recipe in enumerate(draw_recipes(plan, folder)):
        if number == 0:
            fetch_weights(recipe)
        prepared = prepare(recipe, console)
        if plan.tune and not len(prepared.split("val")[1]):
            raise UserError(
                f"{prepared.folder}: there is no validation split, by which tuning chooses; set "
                "data.val_fraction, or tune=0"
            )
    checks, mistakes = Checks(), list[str]()
    for each in plan.contenders:
        if plan.tune:
            recipe = trial_recipe(plan, folder, each.name, 0)
        else:
            recipe = final_recipe(plan, folder, each.name, plan.seeds[0], {})
        if alone:
            recipe = recipe.model_copy(update={"launch": Launch()})
        assert recipe.run_dir is not None
        try:
            checks.check(recipe, recipe.run_dir)
        except UserError as error:
            mistakes += [f"{each.name}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
