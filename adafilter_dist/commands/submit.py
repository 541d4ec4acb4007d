"""``adafilter submit``: runs as jobs of a SLURM cluster, or in the background of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.table import Table

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError, nearest, shown
from adafilter_dist.recipe.changes import add_allow_mismatch, require_known
from adafilter_dist.recipe.find import recipe_names
from adafilter_dist.recipe.hints import wrong_words
from adafilter_dist.recipe.keys import means_recipe
from adafilter_dist.run.submission import rank_log
from adafilter_dist.system.console import Console, print_plain
from adafilter_dist.system.counted import counted

if TYPE_CHECKING:
    from adafilter_dist.launch.target import Target

HELP = "train, evaluate, prepare or compare as a job of a SLURM cluster"
_VERBS = ("train", "evaluate", "prepare", "compare")
_EXAMPLES = (
    "recipe=food101 launch.partition=gpu launch.gpus_per_node=8 launch.time=8h",
    "recipe=food101 launch=@mysite launch.nodes=2        # a site's settings; later words win",
    "recipe=food101 optim.lr=0.01,0.02 seed=0,1,2        # a sweep: six runs, one array",
    "recipe=food101 --dry-run                            # the sbatch script, nothing else",
    "resume=runs/food101/1a2b3c4d                        # go on with a run",
    "compare recipe=food101 methods=finetune,adafilter   # a comparison: its trials, then its runs",
)
_MORE = """\
A job that is preempted, comes to its time limit or loses a node saves and is requeued; one that you
cancel saves and stays. The same words again submit nothing that is queued, running or finished."""


def run(words: list[str], program: str = "adafilter submit") -> int:
    """Parse ``[VERB] recipe=NAME | resume=RUN key=value ... [--dry-run]``, submit and return."""
    parser = Parser(
        prog=program,
        description=f"{HELP}; without SLURM, in the background of this machine.",
        examples=[f"{program} {example}" for example in _EXAMPLES],
        more=_MORE,
        own_words=dict.fromkeys(_VERBS, ()),
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="train (default), evaluate, prepare or compare first",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the sbatch script; look at the words alone, submit nothing",
    )
    add_allow_mismatch(parser)
    options = parser.parse_intermixed_args(words)
    require_known(options.allow_mismatch)
    verb, rest = "train", list(options.words)
    if rest and "=" not in rest[0]:
        verb = rest.pop(0)
    if verb not in _VERBS:
        if verb in recipe_names() or means_recipe(verb):
            raise UserError(wrong_words([verb, *rest])[0])
        raise UserError(
            f"{shown(verb)!r}: not a verb of {program}{nearest(verb, _VERBS)}; there are: "
            f"{', '.join(_VERBS)}"
        )
    console = Console()
    if verb == "train":
        return _train(rest, options.allow_mismatch, options.dry_run, program, console)
    if verb == "compare":
        from adafilter_dist.compare.submission import submit_compare

        return submit_compare(rest, options.dry_run, partial(print_plain, console))
    from adafilter_dist.launch.verb_jobs import submit_verb

    return submit_verb(verb, rest, options.dry_run, partial(print_plain, console))


def _train(
    words: Sequence[str], allow: Sequence[str], dry_run: bool, program: str, console: Console
) -> int:
    # Imported here: --help need not wait for torch.
    from adafilter_dist.launch import submit
    from adafilter_dist.launch.target import find_targets

    say = partial(print_plain, console)
    targets = find_targets(words, allow)
    folder = submit.sweep_folder(targets)
    if dry_run:
        submit.check_words(targets)
        print(submit.plan_batch(targets, folder).script(len(targets)), end="")
        return 0
    launch = targets[0].recipe.launch
    cluster = submit.choose_cluster(launch, say)
    left = submit.still_to_do(targets, say)
    if not left:
        if folder is not None:
            submit.write_sweep(folder, targets)
            say(f"results: adafilter status {folder}")
        return 0
    batch = submit.plan_batch(left, folder)
    submit.check(left, cluster, batch)
    done = submit.submit_runs(left, batch, cluster, words, allow)
    if folder is not None:
        submit.write_sweep(folder, targets)
    job = done.jobs[0].partition("_")[0]
    kind = "job" if cluster == "slurm" else "process"
    size = f"{launch.nodes} x {launch.processes_per_node} processes, {launch.time} a turn"
    count = counted(len(left), "run") if folder is not None else str(left[0].run)
    say(f"submitted {kind} {job}: {count}, {size if cluster == 'slurm' else 'on this machine'}")
    if folder is not None:
        _show_members(console, left, done.jobs)
        lines = {"status": f"adafilter status {folder}", "cancel": submit.cancel_line(cluster, job)}
    else:
        say(f"{'run':<8}{left[0].run}")
        say(f"{'log':<8}{rank_log(done.logs[0], 0)}")
        lines = submit.command_lines(program, left[0].run, cluster, job)
    for name, line in lines.items():
        say(f"{name:<8}{line}")
    return 0


def _show_members(console: Console, targets: Sequence[Target], jobs: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False)
    keys = list(targets[0].values)
    for name in ("JOB", *keys, "RUN"):
        table.add_column(name, overflow="fold")
    for target, job in zip(targets, jobs, strict=True):
        values = [str(target.values[key]) for key in keys]
        table.add_row(job, *values, str(target.run))
    console.print(table)
