"""The runs of a comparison: the recipe of each, and how it stands. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adafilter_dist.compare.plan import Plan, final_run, trial_run
from adafilter_dist.errors import DivergedError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.json_files import text

# A trial is measured by its validation alone, and leaves out what is for people.
_OF_TRIALS: dict[str, Any] = {
    "evaluate.test": False,
    "evaluate.gates": False,
    "evaluate.probe": False,
    "evaluate.control": None,
    "evaluate.oracle": None,
    "log.to": [],
}


@dataclass(frozen=True)
class PlannedRun:
    """A trial (``number`` counts from 0), or a final run (``number`` is its seed)."""

    kind: Literal["trial", "final"]
    contender: str
    number: int
    path: Path

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.contender} {'trial' if self.kind == 'trial' else 'seed'} {self.number}"


def trials_of(plan: Plan, folder: Path, contender: str) -> list[PlannedRun]:
    """A contender's trials, in the order of the design."""
    return [
        PlannedRun("trial", contender, k, trial_run(folder, contender, k)) for k in range(plan.tune)
    ]


def finals_of(plan: Plan, folder: Path, contender: str) -> list[PlannedRun]:
    """A contender's runs with the chosen settings, one a seed."""
    return [
        PlannedRun("final", contender, seed, final_run(folder, contender, seed))
        for seed in plan.seeds
    ]


def all_runs(plan: Plan, folder: Path) -> Iterator[PlannedRun]:
    """Every run of the comparison, contender by contender, its trials first."""
    for each in plan.contenders:
        yield from trials_of(plan, folder, each.name)
        yield from finals_of(plan, folder, each.name)


def trial_recipe(plan: Plan, folder: Path, contender: str, k: int) -> Recipe:
    """The recipe of trial ``k``: validation only, on the seed that is for tuning."""
    planned = plan.contender(contender)
    settings = planned.settings(plan.design[k])
    place = trial_run(folder, contender, k)
    own = _of_run(plan, planned.recipe, plan.tune_seed, place)
    return planned.with_settings({**settings, **_OF_TRIALS, **own})


def final_recipe(
    plan: Plan, folder: Path, contender: str, seed: int, settings: Mapping[str, Any]
) -> Recipe:
    """The recipe of a contender with the settings that were chosen, on one seed."""
    planned = plan.contender(contender)
    own = _of_run(plan, planned.recipe, seed, final_run(folder, contender, seed))
    return planned.with_settings({**settings, **own})


def _of_run(plan: Plan, recipe: Recipe, seed: int, place: Path) -> dict[str, Any]:
    own: dict[str, Any] = {"seed": seed, "run_dir": str(place.absolute()), "resume": "auto"}
    if plan.draws and _is_drawn_when_prepared(recipe.data):
        own["data.split_seed"] = seed
        if recipe.data.prepared is not None:
            own["data.prepared"] = str(recipe.data.prepared / f"draw-{seed}")
    elif plan.draws:
        own["data.draw"] = "seed"
    return own


def is_drawn(data: Data) -> bool:
    """Whether the training pictures are a draw from more, which then is another one each seed."""
    drawn = data.train_per_class is not None or data.label_fraction < 1
    return drawn or _is_drawn_when_prepared(data)


def _is_drawn_when_prepared(data: Data) -> bool:
    """Whether each draw is prepared by itself; of other data every run draws what it trains on."""
    return data.name == "mixed_domains"


def draw_recipes(plan: Plan, folder: Path) -> list[Recipe]:
    """A recipe for each folder of prepared pictures that the runs read, to prepare them by."""
    planned = plan.contenders[0]
    seeds = [*([plan.tune_seed] if plan.tune else []), *plan.seeds]
    if not plan.draws or not _is_drawn_when_prepared(planned.recipe.data):
        seeds = seeds[:1]
    return [planned.with_settings(_of_run(plan, planned.recipe, seed, folder)) for seed in seeds]


Standing = Literal["finished", "diverged", "open"]


def standing(run: PlannedRun) -> Standing:
    """How far a run is: ``finished``, ``diverged`` (which it would again), or still to be done."""
    files = RunFiles(run.path)
    status = files.read_status()
    if status.get("state") == "finished":
        tested = run.kind == "trial" or files.summary_numbers.is_file()
        return "finished" if tested else "open"
    if status.get("state") == "failed" and _reason(status).startswith(DivergedError.__name__):
        return "diverged"
    return "open"


def why_open(run: PlannedRun) -> str:
    """What became of a run that is not finished, in a few words."""
    from adafilter_dist.status.read import read_run

    if not RunFiles(run.path).marks():
        return "not begun"
    status = read_run(run.path)
    return f"{status.state}: {status.reason}" if status.reason else status.state


def _reason(status: Mapping[str, Any]) -> str:
    return text(status, "reason") or ""
