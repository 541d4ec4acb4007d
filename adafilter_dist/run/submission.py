"""submitted.json: the job that a run was given to, and where its output goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_json
from adafilter_dist.system.json_files import Row, read_object, text, whole


@dataclass(frozen=True)
class Submitted:
    """The last submission; ``log`` holds %t for the rank, or is one file for all of them.

    ``job`` is SLURM's id, or under the cluster "local" a process id on ``host``.
    """

    cluster: str
    job: str
    log: str
    tasks: int
    host: str | None = None

    def log_of(self, rank: int) -> Path:
        """Where the output of a rank goes."""
        return rank_log(self.log, rank)


def rank_log(log: str, rank: int) -> Path:
    """The log of a rank, whose number stands for %t in the file's name."""
    path = Path(log)
    return path.with_name(path.name.replace("%t", str(rank)))


def write_submitted(run: Path, note: Row) -> None:
    """Note the job that a run was given to. Raises OSError."""
    write_json(RunFiles(run).submitted, note)


def read_submitted(run: Path, problems: list[str]) -> Submitted | None:
    """The submission of a run; None if it was started by hand, or (a problem) it is damaged."""
    row = read_object(RunFiles(run).submitted, problems)
    cluster, job, log = (text(row, key) for key in ("cluster", "job", "log"))
    if cluster and job and log:
        return Submitted(cluster, job, log, max(1, whole(row, "tasks") or 1), text(row, "host"))
    if row:
        problems.append("submitted.json is damaged")
    return None
