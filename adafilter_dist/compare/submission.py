"""``submit compare``: the arrays of a comparison on SLURM, else one process in the background."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from adafilter_dist.compare.arrays import batch_of, code_of, open_runs, submit_arrays
from adafilter_dist.compare.keeping import find_comparison, keep_plan, sole_command
from adafilter_dist.compare.plan import Plan
from adafilter_dist.launch import local
from adafilter_dist.launch.submit import (
    Say,
    cancel_line,
    choose_cluster,
    local_environment,
    prepare_folder,
)
from adafilter_dist.system.console import Console


def submit_compare(words: Sequence[str], dry_run: bool, say: Say) -> int:
    """Submit what is not done of the comparison that the words mean, and say how to follow it."""
    plan, folder = find_comparison(words)
    code = code_of(plan, folder)
    if dry_run:
        count = len(plan.contenders)
        if plan.tune:
            print(batch_of(plan, folder, "trial", code, set()).script(count * plan.tune), end="")
        after = {"TRIALS"} if plan.tune else set()
        print(batch_of(plan, folder, "final", code, after).script(count * len(plan.seeds)), end="")
        return 0
    jobs: list[str] = []
    cluster = choose_cluster(plan.contenders[0].recipe.launch, say)
    with sole_command(folder):
        plan = keep_plan(plan, folder)
        if cluster == "slurm":
            open_by_kind = open_runs(plan, folder, say)
            if not any(each.runs for each in open_by_kind.values()):
                say("nothing to submit")
            else:
                # Imported here: a refusal of SLURM need not wait for torch.
                batch_of(plan, folder, "trial", code, set()).test()
                from adafilter_dist.compare.ready import make_ready

                make_ready(plan, folder, Console(), alone=False)
                jobs = submit_arrays(plan, folder, open_by_kind, words, say)
    if cluster == "local":
        jobs = [_start_here(plan, folder, code, say)]
    again = shlex.join(["adafilter", "compare", f"compare_dir={folder}", "--results"])
    say(f"{'results':<8}{again}")
    if jobs:
        say(f"{'cancel':<8}{cancel_line(cluster, ' '.join(jobs))}")
    return 0


def _start_here(plan: Plan, folder: Path, code: Path | None, say: Say) -> str:
    """One `adafilter compare` in the background of this machine; its process id."""
    batch = batch_of(plan, folder, "trial", code, set())
    prepare_folder(batch)
    log = batch.folder / f"local.{1 + len(list(batch.folder.glob('local.*.log')))}.log"
    log.touch()
    command = local.command_line(["compare", f"compare_dir={folder.absolute()}"], 1)
    turn = local.Turn(command, str(log))
    process = str(local.start([turn], batch.folder / "local.json", local_environment(batch)))
    say(f"submitted process {process}: adafilter compare")
    say(f"{'log':<8}{log}")
    return process
