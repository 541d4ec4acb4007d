"""``prepare`` and ``evaluate`` as jobs of their own: they change no run, and come back to none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.launch import local
from adafilter_dist.launch.batch import Batch
from adafilter_dist.launch.cleanup import removed_on_failure
from adafilter_dist.launch.submit import (
    Say,
    cancel_line,
    choose_cluster,
    job_for,
    local_environment,
    prepare_folder,
)
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.shares import require_job_shares
from adafilter_dist.run.find import find_run_of

# `prepare` is one process with a thread a core.
_ALONE = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1}


def submit_verb(verb: str, words: Sequence[str], dry_run: bool, say: Say) -> int:
    """Submit ``adafilter VERB WORDS`` and say how to follow and cancel it."""
    recipe = _recipe_of(verb, words)
    place = (Path("runs") / recipe.name / verb).absolute()
    number = 1 + len(list(place.glob("code-*")))
    launch = recipe.launch
    code = place / f"code-{number}" if launch.snapshot else None
    batch = Batch(launch, f"{recipe.name}-{verb}", place, code)
    if dry_run:
        print(batch.script(1), end="")
        return 0
    cluster = choose_cluster(launch, say)
    if cluster == "slurm":
        batch.test()
    with removed_on_failure([place]):
        prepare_folder(batch)
        if cluster == "slurm":
            (job,) = batch.submit([job_for(launch, verb, words, None, place)])
            log = place / f"{job}_0_log.out"
        else:
            log = place / f"local.{number}.log"
            log.touch()
            command = local.command_line([verb, *words], launch.processes_per_node)
            turn = local.Turn(command, str(log))
            job = str(local.start([turn], place / "local.json", local_environment(batch)))
    say(f"submitted {'job' if cluster == 'slurm' else 'process'} {job}: adafilter {verb}")
    say(f"{'log':<8}{log}")
    say(f"{'follow':<8}tail -F {log}")
    say(f"{'cancel':<8}{cancel_line(cluster, job)}")
    return 0


def _recipe_of(verb: str, words: Sequence[str]) -> Recipe:
    if not words:
        raise UserError(f"{verb} what? add recipe=NAME")
    if verb == "prepare":
        recipe = load_recipe(words)
        launch = recipe.launch.model_copy(update=_ALONE)
        return recipe.model_copy(update={"launch": launch})
    _, recipe = find_run_of(list(words))
    require_job_shares(recipe)
    return recipe
