"""What the batch scripts of slurm/ run: before torchrun, as each of its ranks, and after it.

    python -m adafilter_dist.launch.script begin --ranks=N recipe=NAME key=value ...
    torchrun ... -m adafilter_dist.launch.script train recipe=NAME key=value ...
    python -m adafilter_dist.launch.script settle --signal=NAME --code=N

SLURM starts a script anew at each requeue, with the words it was submitted with. What they meant
the first time is kept in runs/jobs/JOB.yaml and holds from then on, whatever becomes of the recipe.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.launch.after_torchrun import finish_job
from adafilter_dist.launch.requeue import decide_for_own_job, limits
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.changes import add_allow_mismatch, require_known
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.run.ownership import is_alive, newest_owner
from adafilter_dist.slurm.environment import SlurmEnvironment, own_job
from adafilter_dist.system.exit_code import exit_code
from adafilter_dist.system.files import make_folder, write_text
from adafilter_dist.system.openmp import set_wait_policy
from adafilter_dist.training.preemption import StopFlag, stop_on_signal

set_wait_policy()  # before torch is imported
_SIGNAL_BEFORE = 120.0  # what the scripts ask SLURM for


class LinkFlag(StopFlag):
    """A stop flag that the batch shell can raise too, by a symbolic link named after a signal.

    It is needed because torchrun forwards TERM only, and kills its ranks half a minute later.
    """

    def __init__(self, link: str | None) -> None:
        super().__init__()
        self._link = link

    @property
    def raised(self) -> bool:
        """Whether a signal has come, to this process or the batch shell, or time is running out."""
        if not self.reason and self._link:
            with suppress(OSError):  # not there: nobody has asked
                self.reason = os.readlink(self._link)
        return super().raised


def begin(words: Sequence[str], allow: Collection[str], ranks: int) -> None:
    """Find the run that the words mean, and store it for this job's restarts.

    Raises UserError for any mistake, before anything is started.
    """
    job, restart = _job()
    file = _kept_recipe(job)
    if restart and file.is_file():
        return
    from adafilter_dist.distributed.deepspeed_import import require_deepspeed
    from adafilter_dist.launch.target import find_targets
    from adafilter_dist.recipe.shares import require_shares
    from adafilter_dist.run.folder import RunFolder

    target, *others = find_targets(words, allow)
    if others:
        raise UserError(
            "a batch script trains one run: for comma lists there is `adafilter submit`"
        )
    owner = newest_owner(target.run)
    if owner is not None and is_alive(target.run, owner):
        raise UserError(f"{target.run} is in use by {owner.name}; wait for its end, or stop it")
    recipe = _placed(target.recipe, ranks)
    # sbatch's options and RANKS say how many, and not the keys of launch:
    launch = recipe.launch
    where = f"{launch.nodes} x {launch.processes_per_node} processes"
    require_shares(recipe, launch.world_size, where)
    require_deepspeed(recipe)
    make_folder(target.run)
    if not target.files.recipe.exists():
        RunFolder(target.run).keep(_placed(target.plan.decision.recipe, ranks))
    make_folder(file.parent)
    asked = recipe.model_copy(update={"resume": str(target.run.absolute())})
    write_text(file, dump_recipe(asked))
    log = os.path.realpath("/proc/self/fd/1")
    replace(target, recipe=recipe).submitted("slurm", job, Path.cwd(), log, words)


def _placed(recipe: Recipe, ranks: int) -> Recipe:
    """The recipe with the nodes and processes that this job has."""
    slurm = SlurmEnvironment()
    gpus = {"gpus_per_node": ranks, "tasks_per_node": None}
    cpus = {"gpus_per_node": 0, "tasks_per_node": ranks}
    where = gpus if slurm.has_gpus else cpus
    launch = recipe.launch.model_copy(update={"nodes": slurm.nodes, **where})
    return recipe.model_copy(update={"launch": launch})


def train(allow: Collection[str]) -> int:
    """Train as a rank of torchrun; 0 when the run is finished, or stopped and saved."""
    flag = LinkFlag(os.environ.get("ADAFILTER_STOP"))
    with stop_on_signal(flag, last=True):  # from now on: imports take seconds
        from adafilter_dist.distributed.interface import require, use
        from adafilter_dist.system.console import Console
        from adafilter_dist.system.importing import importing

        with importing():
            from adafilter_dist.training.attempt import run_attempt
            from adafilter_dist.training.stop_policy import StopPolicy

        recipe = load_recipe([f"recipe={_kept_recipe(_job()[0])}"])
        launch = recipe.launch
        if launch.interface:
            use(require(launch.interface))
        signal_before, grace = _signal_before(recipe), launch.grace
        stop_policy = StopPolicy(
            flag,
            explain=lambda signal_name: decide_for_own_job(signal_name, signal_before).reason,
            grace=None if grace is None else seconds(grace),
            max_restarts=launch.max_restarts,
        )
        if os.environ["RANK"] == "0":
            try:
                flag.ends_at, cluster_grace = limits()
                stop_policy.grace = (
                    cluster_grace if stop_policy.grace is None else stop_policy.grace
                )
            except OSError as error:
                print(f"warning: SLURM does not say when this job ends: {error}", flush=True)
        return run_attempt(
            recipe, Console(soft_wrap=True), allow_mismatch=allow, stop_policy=stop_policy
        )


def end(signal_name: str, code: int) -> int:
    """Requeue the job if needed, after torchrun has ended; returns the script's exit code."""
    recipe = load_recipe([f"recipe={_kept_recipe(_job()[0])}"])
    return finish_job(Path(recipe.resume), signal_name, code, signal_before=_signal_before(recipe))


def _signal_before(recipe: Recipe) -> float:
    """Seconds before the time limit at which SLURM signals."""
    return max(_SIGNAL_BEFORE, seconds(recipe.launch.signal_before))


def _job() -> tuple[str, int]:
    own = own_job()
    if own is None:
        raise UserError("not in a SLURM job: give the script to sbatch")
    return own


def _kept_recipe(job: str) -> Path:
    return Path("runs") / "jobs" / f"{job}.yaml"


def main(words: Sequence[str]) -> int:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(prog="adafilter_dist.launch.script", description=__doc__)
    parser.add_argument("step", choices=("begin", "train", "settle"))
    parser.add_argument("recipe", nargs="*")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--signal", default="")
    parser.add_argument("--code", type=int, default=0)
    add_allow_mismatch(parser)
    options = parser.parse_intermixed_args(words)
    allow = tuple(options.allow_mismatch)
    if options.step == "begin":
        require_known(allow)
        begin(options.recipe, allow, options.ranks)
        return 0
    if options.step == "train":
        return train(allow)
    return end(options.signal, options.code)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
