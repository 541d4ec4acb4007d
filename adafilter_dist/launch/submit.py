"""Submitting runs: checked here, noted in their folders, then given to SLURM or to this machine."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adafilter_dist.errors import UserError
from adafilter_dist.launch import local
from adafilter_dist.launch.batch import Batch
from adafilter_dist.launch.checks import Checks
from adafilter_dist.launch.cleanup import removed_on_failure
from adafilter_dist.launch.job import Job
from adafilter_dist.launch.snapshot import take_snapshot
from adafilter_dist.launch.target import Target, job_of
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.sections.launch import Launch
from adafilter_dist.recipe.shares import require_job_shares
from adafilter_dist.slurm.queue import jobs as ask_queue
from adafilter_dist.system.files import make_folder, write_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """What was submitted: the job of each run, in order; an array has one number in all of them."""

    cluster: Literal["slurm", "local"]
    jobs: list[str]
    logs: list[str]


def choose_cluster(launch: Launch, say: Say) -> Literal["slurm", "local"]:
    """``launch.cluster``; auto means SLURM if sbatch works, else this machine, with a note."""
    if launch.cluster != "auto":
        if launch.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError(
                "launch.cluster=slurm: there is no sbatch on this machine; submit from a login "
                "node, or use launch.cluster=local"
            )
        return launch.cluster
    try:
        exit_code = subprocess.run(
            ["sbatch", "--version"], capture_output=True, timeout=20
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        exit_code = 1
    if exit_code == 0:
        return "slurm"
    say("no SLURM here (sbatch does not answer): processes of this machine instead")
    return "local"


def still_to_do(targets: Sequence[Target], say: Say) -> list[Target]:
    """The targets that are not finished, queued or running; the others are named in a line each."""
    known = {target.run: number for target in targets if (number := job_of(target.run))}
    asked = {*known.values(), *filter(None, (target.owners_job() for target in targets))}
    queue = (ask_queue(asked) or {}) if asked else {}
    left = []
    for target in targets:
        job = queue.get(known.get(target.run, ""))
        owner, process = target.in_use(queue), target.awaited_by()
        if target.plan.done:
            say(f"{target.run}: already finished; resume=never starts another")
        elif job is not None and not job.ended:
            say(
                f"{target.run}: already submitted, job {job.name} is {job.state.lower()}; "
                f"scancel {job.name} takes it back"
            )
        elif process and not owner:
            say(
                f"{target.run}: already submitted, process {process} will run it; kill {process} "
                "takes it back, with all that it has still to run"
            )
        elif owner:
            say(f"{target.run}: in use by {owner}; wait for its end, or stop it")
        else:
            left.append(target)
    return left


def check(targets: Sequence[Target], cluster: str, batch: Batch) -> None:
    """Everything that can be known before the job starts; UserError with all mistakes at once."""
    _require_one_node(targets, cluster)
    checks = Checks()
    _check_all(targets, lambda target: checks.check(target.recipe, target.run))
    if cluster == "slurm":
        batch.test()


def check_words(targets: Sequence[Target]) -> None:
    """What the words alone tell: whether every process would have micro-batches; UserError."""
    _require_one_node(targets, targets[0].recipe.launch.cluster)
    _check_all(targets, lambda target: require_job_shares(target.recipe))


def _require_one_node(targets: Sequence[Target], cluster: str) -> None:
    nodes = targets[0].recipe.launch.nodes
    if cluster == "local" and nodes > 1:
        raise UserError(
            f"launch.nodes={nodes}: launch.cluster=local has one; set launch.nodes=1 "
            f"launch.gpus_per_node={targets[0].recipe.launch.world_size}"
        )


def _check_all(targets: Sequence[Target], check_one: Callable[[Target], None]) -> None:
    """Check each target; UserError with the mistakes of all, each once."""
    mistakes: list[str] = []
    for target in targets:
        try:
            check_one(target)
        except UserError as error:
            mistakes += [line for line in str(error).splitlines() if line not in mistakes]
    if mistakes:
        raise UserError("\n".join(mistakes))


def sweep_folder(targets: Sequence[Target]) -> Path | None:
    """Where the table of a sweep lies, named after its members; None for a single run."""
    if not any(target.values for target in targets):
        return None
    names = "\n".join(sorted(str(target.run) for target in targets))
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    return targets[0].run.parent / f"sweep-{digest}"


def write_sweep(folder: Path, targets: Sequence[Target]) -> None:
    """sweep.json: which runs, and what differs between them."""
    make_folder(folder)
    members = [{"run": str(t.run.absolute()), "values": t.values} for t in targets]
    write_json(folder / "sweep.json", {"key": list(targets[0].values), "members": members})


def plan_batch(targets: Sequence[Target], folder: Path | None) -> Batch:
    """The sbatch script of these targets; ``folder`` is that of their sweep, if they are one."""
    recipe = targets[0].recipe
    if folder is None:
        place, code = targets[0].jobs, targets[0].run.absolute() / "code"
    else:
        # Earlier members may still run the code that they were submitted with.
        place = folder.absolute() / "jobs"
        number = 1 + len(list(folder.glob("code-*")))
        code = folder.absolute() / f"code-{number}"
    return Batch(recipe.launch, recipe.name, place, code if recipe.launch.snapshot else None)


def submit_runs(
    targets: Sequence[Target],
    batch: Batch,
    cluster: str,
    words: Sequence[str],
    allow: Sequence[str] = (),
) -> Submission:
    """Note the runs as queued and submit them; nothing is left behind where that is refused."""
    with removed_on_failure([*(target.run for target in targets), batch.folder.parent]):
        prepare_folder(batch)
        noted: list[tuple[Target, bytes | None]] = []
        try:
            for target in targets:
                noted.append((target, target.enqueue()))
            if cluster == "slurm":
                ids = batch.submit([_job(target, batch, allow) for target in targets])
                logs = [str(batch.folder / f"{job}_%t_log.out") for job in ids]
                done = Submission("slurm", ids, logs)
            else:
                done = _start_local(targets, batch, allow)
        except BaseException:
            for target, before in noted:
                target.dequeue(before)
            raise
    for target, job, log in zip(targets, done.jobs, done.logs, strict=True):
        target.submitted(done.cluster, job, batch.folder, log, words)
    return done


def prepare_folder(batch: Batch) -> None:
    """Make the folder of a submission and copy the code; UserError where that is not possible."""
    try:
        make_folder(batch.folder)
        if batch.code is not None:
            take_snapshot(batch.code)
    except OSError as error:
        raise UserError(
            f"{batch.folder}: cannot be written ({error.strerror or error}); choose another place "
            "with run_dir=PATH"
        ) from None


def job_for(launch: Launch, verb: str, words: Sequence[str], run: Path | None, folder: Path) -> Job:
    """What each task of a job runs."""
    return Job(
        verb=verb,
        words=tuple(words),
        run=run,
        folder=folder,
        near=seconds(launch.signal_before),
        grace=None if launch.grace is None else seconds(launch.grace),
        max_restarts=launch.max_restarts,
        interface=launch.interface,
        connect_timeout=seconds(launch.connect_timeout),
    )


def _job(target: Target, batch: Batch, allow: Sequence[str]) -> Job:
    words = [f"recipe={target.wanted}"]
    job = job_for(target.recipe.launch, "train", words, target.run.absolute(), batch.folder)
    return replace(job, allow=tuple(allow))


def _start_local(targets: Sequence[Target], batch: Batch, allow: Sequence[str]) -> Submission:
    turns = []
    for target in targets:
        number = 1 + len(list(target.jobs.glob("local.*.log")))
        log = target.jobs / f"local.{number}.log"
        log.touch()
        allowed = [word for key in allow for word in ("--allow-mismatch", key)]
        words = ["train", f"recipe={target.wanted}", *allowed]
        processes = target.recipe.launch.processes_per_node
        command = local.command_line(words, processes)
        turns.append(local.Turn(command, str(log), str(target.run.absolute())))
    pid = local.start(turns, batch.folder / "local.json", local_environment(batch))
    return Submission("local", [str(pid)] * len(targets), [turn.log for turn in turns])


def local_environment(batch: Batch) -> dict[str, str]:
    """The variables of a job that runs on this machine."""
    set_by_hand = {name: str(value) for name, value in batch.launch.environment.items()}
    if batch.path is None:
        return set_by_hand
    paths = os.pathsep.join(filter(None, [str(batch.path), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", **set_by_hand}


def cancel_line(cluster: str, job: str) -> str:
    """The command that ends a job; its runs save first."""
    return f"scancel {job}" if cluster == "slurm" else f"kill {job}"


def command_lines(program: str, run: Path, cluster: str, job: str) -> dict[str, str]:
    """Copyable commands for a run that was submitted."""
    path = shlex.quote(str(run))
    return {
        "follow": f"adafilter logs {path} --follow",
        "status": f"adafilter status {path}",
        "cancel": cancel_line(cluster, job),
        "resume": f"{program} resume={path}",
    }
