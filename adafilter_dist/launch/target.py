"""A run that is to be submitted: found, checked, and noted as queued."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adafilter_dist.errors import UserError
from adafilter_dist.launch import local
from adafilter_dist.launch.sweep import Member, expand
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.sections.launch import Launch
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.run.kept_recipe import recipe_file
from adafilter_dist.run.ownership import Ownership, is_alive, newest_owner
from adafilter_dist.run.submission import read_submitted, write_submitted
from adafilter_dist.slurm.queue import QueuedJob
from adafilter_dist.system.files import make_folder, write_bytes, write_text
from adafilter_dist.training.plan import AttemptPlan, make_plan


@dataclass(frozen=True)
class Target:
    """A member of the submission with the run it means; ``values`` are those of swept keys."""

    recipe: Recipe
    plan: AttemptPlan
    values: dict[str, Any]

    @property
    def run(self) -> Path:
        """The run folder, as it is found from here."""
        return self.plan.path

    @property
    def files(self) -> RunFiles:
        """What lies in the run folder."""
        return RunFiles(self.run)

    @property
    def jobs(self) -> Path:
        """Where scripts, pickles and logs of the run's own jobs lie."""
        return self.run.absolute() / "jobs"

    @property
    def wanted(self) -> Path:
        """The recipe as it was submitted, with the run it is for."""
        return self.jobs / "recipe.yaml"

    def owners_job(self) -> str | None:
        """The SLURM job of the last attempt, if it was in one."""
        owner = newest_owner(self.run) if self.run.exists() else None
        return owner.job if owner is not None else None

    def in_use(self, queue: Mapping[str, QueuedJob]) -> str:
        """What uses the run now, empty if nothing known does; ``queue`` is SLURM's view of jobs.

        An owner on another node, whose job is over, is dead: the run is given free at once.
        """
        owner = newest_owner(self.run) if self.run.exists() else None
        lease = seconds(self.recipe.checkpoint.lease)
        if owner is None or is_alive(self.run, owner, lease=lease) is False:
            return ""
        job = queue.get(owner.job or "")
        if job is None or not job.ended:
            return owner.name
        Ownership(self.run, owner.attempt).end("killed", f"job {job.name}: {job.state_text}", None)
        return ""

    def awaited_by(self) -> str:
        """The process of this machine whose turn for the run has yet to come, empty for none."""
        known = read_submitted(self.run, [])
        if known is None or known.cluster != "local" or known.host != socket.gethostname():
            return ""
        queued = self.files.read_status().get("state") == "queued"
        return known.job if queued and local.is_running(known.job) else ""

    def enqueue(self) -> bytes | None:
        """Make the run folder and note it as queued; what status.json held before."""
        try:
            make_folder(self.jobs)
            if not self.files.recipe.exists():
                RunFolder(self.run).keep(self.plan.decision.recipe)
            asked = self.recipe.model_copy(update={"resume": str(self.run.absolute())})
            write_text(self.wanted, dump_recipe(asked))
            status = self.files.status
            before = status.read_bytes() if status.exists() else None
            self.files.note_state(RunFolder(self.run).read_status(), "queued", "")
            return before
        except OSError as error:
            raise UserError(
                f"run_dir={self.run}: cannot be written ({error.strerror}); choose another with "
                "run_dir=PATH"
            ) from None

    def dequeue(self, before: bytes | None) -> None:
        """Undo what :meth:`enqueue` noted."""
        status = self.files.status
        if before is None:
            status.unlink(missing_ok=True)
        else:
            write_bytes(status, before)

    def submitted(
        self, cluster: str, job: str, folder: Path, log: str, words: Sequence[str]
    ) -> None:
        """Note the job that the run was given to."""
        note_submitted(self.run, self.recipe.launch, cluster, job, folder, log, words)


def note_submitted(
    run: Path,
    launch: Launch,
    cluster: str,
    job: str,
    folder: Path,
    log: str,
    words: Sequence[str],
) -> None:
    """Note in its folder the job that a run was given to."""
    note = {
        "cluster": cluster,
        "job": job,
        "host": socket.gethostname(),
        "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(folder),
        "log": log,
        "tasks": launch.world_size,
        "nodes": launch.nodes,
        "words": list(words),
    }
    write_submitted(run, note)


def job_of(run: Path) -> str | None:
    """The SLURM job that a run was last given to."""
    known = read_submitted(run, [])  # what is damaged, `status` says
    return known.job if known is not None and known.cluster == "slurm" else None


def find_targets(words: Sequence[str], allow: Collection[str]) -> list[Target]:
    """The runs that the words mean, one for each combination of comma lists.

    Raises UserError for any mistake in any of them, and for two that are the same run.
    """
    targets: list[Target] = []
    mistakes: list[str] = []
    for member in expand(words):
        try:
            targets.append(_target(member, allow))
        except UserError as error:
            mistakes += [line for line in str(error).splitlines() if line not in mistakes]
    if mistakes:
        raise UserError("\n".join(mistakes))
    for number, target in enumerate(targets):
        for other in targets[:number]:
            if other.run == target.run:
                raise UserError(
                    f"{_said(other.values)} and {_said(target.values)} are the same run, "
                    f"{target.run}: leave one out"
                )
    return targets


def _target(member: Member, allow: Collection[str]) -> Target:
    words = dict(word.partition("=")[::2] for word in member.words)
    resumed = words.get("resume", "auto")
    if "recipe" not in words and resumed not in ("auto", "never"):
        known = recipe_file(Path(resumed).expanduser())
        recipe = load_recipe([f"recipe={known}", *member.words])
    else:
        recipe = load_recipe(member.words)
    return Target(recipe, make_plan(recipe, allow), member.values)


def _said(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
