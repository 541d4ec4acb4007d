"""Which rank failed first, and its last lines."""

from __future__ import annotations

import re
from pathlib import Path

from adafilter_dist.run.attempts import Attempt
from adafilter_dist.run.files import AttemptFiles, RunFiles
from adafilter_dist.run.submission import Submitted
from adafilter_dist.status.model import Failure
from adafilter_dist.system.json_files import Row, number, text, whole

LINES = 15
_TAIL = 200_000  # bytes of a log that are looked at
# What a job says where it begins, and rank 0 where it goes on: before it is another attempt.
_START = re.compile(r"Starting with JobEnvironment\(|^going on from step ")
_TASK = re.compile(r"srun: error: ([^:\s]+): tasks? (\d+)[-,\d]*: (.+)")
_CANCELLED = re.compile(r"\*\*\* (STEP|JOB) .* (CANCELLED|FAILED) ")


def first_failure(run: Path, attempt: Attempt, submitted: Submitted | None) -> Failure | None:
    """What the first of the ranks that failed in an attempt left; None if nothing tells."""
    return _noted(RunFiles(run).attempt(attempt.number)) or (
        srun_failure(submitted) if submitted and attempt.job else None
    )


def _noted(attempt: AttemptFiles) -> Failure | None:
    """The first failure among the files that ranks write when an exception ends them."""
    notes = [note for note in attempt.read_failures() if _lines(note)]
    if not notes:
        return None
    first = min(notes, key=lambda note: (number(note, "time") or 0.0, whole(note, "rank") or 0))
    return Failure(whole(first, "rank"), text(first, "host"), _lines(first))


def _lines(note: Row) -> list[str]:
    lines = note.get("error")
    if not isinstance(lines, list):
        return []
    shown = [text({"line": line}, "line") for line in lines[-LINES:]]
    return [line for line in shown if line is not None]


def srun_failure(submitted: Submitted) -> Failure | None:
    """The task that failed first according to srun's output, with the task's last lines."""
    lines = last_lines(submitted.log_of(0))
    begun = max((i for i, line in enumerate(lines) if _START.search(line)), default=0)
    for line in lines[begun:]:
        if _CANCELLED.search(line):
            return None  # SLURM ended the tasks: preemption, time limit, a node
        match = _TASK.search(line)
        if match:
            host, rank, how = match[1], int(match[2]), match[3].strip()
            own = lines[begun:] if rank == 0 else last_lines(submitted.log_of(rank))
            own = [line for line in own if not line.startswith(("srun: ", "slurmstepd"))]
            return Failure(rank, host, [*own[-(LINES - 1) :], how])
    return None


def last_lines(path: Path, size: int = _TAIL) -> list[str]:
    """The lines in the last ``size`` bytes of a log; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - size))
            content = file.read()
    except OSError:
        return []
    lines = content.decode(errors="replace").split("\n")
    return [shown for line in lines if (shown := text({"line": line.rstrip()}, "line"))]
