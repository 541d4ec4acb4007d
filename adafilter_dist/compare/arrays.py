"""A comparison on SLURM: an array of trials, one of final runs after it, then the results.

A member that is preempted, or comes to its time limit, is requeued like any run. Each array waits
until all members of the one before are over (afterany), however they ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adafilter_dist.compare.array_job import ArrayJob
from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.runs import PlannedRun, all_runs, standing
from adafilter_dist.launch.batch import Batch
from adafilter_dist.launch.cleanup import removed_on_failure
from adafilter_dist.launch.submit import Say, job_for, prepare_folder
from adafilter_dist.launch.target import job_of, note_submitted
from adafilter_dist.recipe.sections.launch import Launch
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.slurm.queue import jobs as ask_queue
from adafilter_dist.system.files import make_folder

# Results are read and averaged by one process.
_ALONE = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1}


@dataclass(frozen=True)
class Open:
    """The runs of a kind that are to be submitted, and SLURM's jobs that have the others."""

    runs: list[PlannedRun]
    jobs: set[str]


def open_runs(plan: Plan, folder: Path, say: Say) -> dict[str, Open]:
    """By kind: what is not done yet, without what SLURM has already, whose jobs are named."""
    left = [run for run in all_runs(plan, folder) if standing(run) == "open"]
    known = {run: job for run in left if (job := job_of(run.path))}
    queue = (ask_queue(set(known.values())) or {}) if known else {}
    open_by_kind = {"trial": Open([], set()), "final": Open([], set())}
    for run in left:
        queued = queue.get(known.get(run, ""))
        if queued is not None and not queued.ended:
            open_by_kind[run.kind].jobs.add(known[run].partition("_")[0])
        else:
            open_by_kind[run.kind].runs.append(run)
    waiting = sorted(open_by_kind["trial"].jobs | open_by_kind["final"].jobs)
    if waiting:
        say(f"already submitted, not over yet: job {', '.join(waiting)}")
    return open_by_kind


def batch_of(plan: Plan, folder: Path, kind: str, code: Path | None, after: set[str]) -> Batch:
    """The sbatch script of the array of a kind, or of the results, behind the jobs ``after``."""
    launch = plan.contenders[0].recipe.launch
    if kind == "results":
        launch = launch.model_copy(update=_ALONE)
    return Batch(_behind(launch, after), f"{plan.name}-{kind}", folder.absolute() / "jobs", code)


def _behind(launch: Launch, after: set[str]) -> Launch:
    """``launch`` with a dependency on jobs that are over, beside one that the user has set."""
    if not after:
        return launch
    more = dict(launch.additional_parameters)
    own = f"afterany:{':'.join(sorted(after))}"
    more["dependency"] = ",".join(filter(None, [str(more.get("dependency") or ""), own]))
    return launch.model_copy(update={"additional_parameters": more})


def code_of(plan: Plan, folder: Path) -> Path | None:
    """Where the copy of the code goes that this submission's jobs run."""
    number = 1 + len(list(folder.glob("code-*")))
    snapshot = plan.contenders[0].recipe.launch.snapshot
    return folder.absolute() / f"code-{number}" if snapshot else None


def submit_arrays(
    plan: Plan, folder: Path, open_by_kind: Mapping[str, Open], words: Sequence[str], say: Say
) -> list[str]:
    """Submit what `open_runs` found: trials, final runs, then the results; the jobs' numbers."""
    code = code_of(plan, folder)
    jobs: list[str] = []
    after = open_by_kind["trial"].jobs
    new = [run.path for each in open_by_kind.values() for run in each.runs]
    with removed_on_failure([*new, *([code] if code is not None else [])]):
        prepare_folder(batch_of(plan, folder, "trial", code, set()))
        for kind in ("trial", "final"):
            runs = open_by_kind[kind].runs
            if not runs:
                continue
            batch = batch_of(plan, folder, kind, code, after if kind == "final" else set())
            for run in runs:
                make_folder(run.path)
                files = RunFiles(run.path)
                files.note_state(RunFolder(run.path).read_status(), "queued", "")
            ids = batch.submit([_member(run, folder, batch) for run in runs])
            for run, job in zip(runs, ids, strict=True):
                log = str(batch.folder / f"{job}_%t_log.out")
                note_submitted(run.path, batch.launch, "slurm", job, batch.folder, log, words)
            number = ids[0].partition("_")[0]
            jobs.append(number)
            (after if kind == "trial" else open_by_kind["final"].jobs).add(number)
            name = "trials" if kind == "trial" else "final runs"
            say(f"submitted job {number}: {len(runs)} {name}")
        batch = batch_of(plan, folder, "results", code, open_by_kind["final"].jobs | after)
        results = job_for(
            batch.launch,
            "compare",
            [f"compare_dir={folder.absolute()}", "--results"],
            None,
            batch.folder,
        )
        (number,) = batch.submit([results])
        jobs.append(number)
        say(f"submitted job {number}: the results, in {folder / 'results.md'}")
    return jobs


def _member(run: PlannedRun, folder: Path, batch: Batch) -> ArrayJob:
    job = job_for(batch.launch, "train", [], run.path.absolute(), batch.folder)
    fields = {name: getattr(job, name) for name in asdict(job)}
    return ArrayJob(
        **fields,
        comparison=folder.absolute(),
        kind=run.kind,
        contender=run.contender,
        number=run.number,
    )
