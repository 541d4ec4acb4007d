"""``adafilter compare``: methods under equal budgets, tuned on validation and tested once."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.compare.contenders import CONTENDERS
from adafilter_dist.compare.estimate import estimate, planned_disk
from adafilter_dist.compare.keeping import find_comparison, keep_plan, sole_command
from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.request import OWN_WORDS
from adafilter_dist.errors import UserError
from adafilter_dist.system.console import Console, print_plain
from adafilter_dist.system.counted import counted
from adafilter_dist.system.disk import gib
from adafilter_dist.system.progress import duration

HELP = "methods under equal budgets: tuned alike, tested once on all seeds"
_DESCRIPTION = """\
Compare methods on one recipe. Each is tuned with the same number of trials, over its own search
space at the same points, on the validation split and a seed of its own; then it is trained with
the best setting on every seed, and tested once. The test set is not read before."""
_MORE = f"""\
methods=A,B     of: {", ".join(CONTENDERS)}
seeds=0..4      seeds of the final runs: 0..4 or 0,1,7 (default 0..4)
tune=8          trials of each method, best a power of two (default 8); 0: the recipe's own settings
tune_seed=N     seed of the trials, none of seeds= (default 1000)
base=NAME       the method that others are compared with (default finetune, else the first)
compare_dir=P   folder of the comparison (default runs/NAME/compare-HASH); alone: go on with it

The same command again goes on where it stopped, and runs nothing twice. A key that is set by hand,
such as optim.weight_decay=0, is not searched."""


def run(words: list[str]) -> int:
    """Parse ``recipe=NAME methods=A,B seeds=0..4 tune=8 ...``, run and print the results."""
    parser = Parser(
        prog="adafilter compare",
        description=_DESCRIPTION,
        examples=[
            "adafilter compare recipe=demo methods=finetune,adafilter seeds=0..4 tune=8",
            "adafilter compare recipe=caltech256-30 methods=finetune,adafilter tune=8 --dry-run",
        ],
        more=_MORE,
        own_words={**{f"{word}=": () for word in OWN_WORDS}, "methods=": tuple(CONTENDERS)},
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="methods=A,B, see below")
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many runs, hours and disk; start nothing"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="runs at once (default: as the cores or GPUs do)"
    )
    parser.add_argument(
        "--results", action="store_true", help="train nothing; the results of what is done"
    )
    options = parser.parse_intermixed_args(words)
    if options.workers is not None and not 1 <= options.workers <= 1024:
        raise UserError(f"--workers {options.workers}: must be from 1 to 1024")
    plan, folder = find_comparison(options.words)
    console = Console()
    say = partial(print_plain, console)
    if options.dry_run:
        for line in dry_run_lines(plan, folder, options.workers):
            say(line)
        return 0
    if options.results:
        from adafilter_dist.compare.ending import conclude

        return conclude(folder, console)
    from adafilter_dist.compare.local import STOPPED, LocalRunner, Machine
    from adafilter_dist.compare.progress import CompareProgress

    with sole_command(folder):
        plan = keep_plan(plan, folder)
        machine = Machine.of(plan.contenders[0].recipe, options.workers)
        say(f"{folder}: {_size(plan)}, {machine.workers} at once")
        progress = CompareProgress(console, machine.workers)
        runner = LocalRunner(plan, folder, machine, progress)
        try:
            ending = runner.run()
        finally:
            progress.close()
        if ending.stopped:
            again = shlex.join(["adafilter", "compare", f"compare_dir={folder}"])
            say(f"stopped; go on with: {again}")
            return STOPPED
        code = runner.conclude()
        for line in ending.failures:
            say(f"failed: {line}")
        return max(code, 1 if ending.failures else 0)


def _size(plan: Plan) -> str:
    count = len(plan.contenders)
    return (
        f"{counted(count, 'method')} x {counted(plan.tune, 'trial')} and "
        f"{counted(len(plan.seeds), 'seed')}, "
        f"{counted(count * (plan.tune + len(plan.seeds)), 'run')}"
    )


def dry_run_lines(plan: Plan, folder: Path, workers: int | None) -> list[str]:
    """How many runs, hours and how much disk."""
    from adafilter_dist.compare.local import Machine

    known = estimate(plan, folder)
    machine = Machine.of(plan.contenders[0].recipe, workers)
    done = f", {known.runs - known.left} of them done" if known.left < known.runs else ""
    lines = [f"folder  {folder}", f"runs    {_size(plan)}{done}"]
    if known.seconds is None:
        lines.append(
            "time    unknown until the first run has made steps; `adafilter train ... --check` "
            "measures one"
        )
    else:
        lines.append(
            f"time    {duration(known.seconds / machine.workers)} with {machine.workers} at once, "
            f"as {known.measured} runs so far went"
        )
    size = known.disk or planned_disk(plan, folder, machine.workers)
    disk = "unknown before the data are prepared" if size is None else f"about {gib(size)}"
    lines.append(f"disk    {disk}")
    for each in plan.contenders:
        keys = ", ".join(f"{one.key} {one.low:g} to {one.high:g}" for one in each.space)
        lines.append(f"        {each.name}: searches {keys if plan.tune and keys else 'nothing'}")
    return lines
