"""Who starts a job again after it was interrupted: decided from what SLURM says, exactly once.

JobState                  beside it                    what happened      who requeues
any                       Restarts has grown           SLURM requeued it  SLURM has
COMPLETING, TIMEOUT       Reason=TimeLimit             the time limit     we
any                       PreemptTime is set           a preemption       we: it would be over
COMPLETING, CANCELLED     none of these                scancel            nobody
RUNNING, SIGNALING        EndTime is near              the time limit     we
RUNNING, SIGNALING        USR1 or INT                  a user's wish      nobody
RUNNING, SIGNALING        another signal               a signal by hand   we
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.training.preemption import TIME_LIMIT

_FIELD = re.compile(r"(?:^|\s)(JobState|Restarts|Reason|PreemptTime|EndTime|Partition)=(\S+)")
_ASK_SECONDS = 20.0
# SLURM looks at limits every half minute, and sends what is due then.
_LOOKS_EVERY = 60.0
_ENDED_BY_HAND = ("SIGUSR1", "SIGINT")


@dataclass(frozen=True)
class Verdict:
    """What happened to the job, and who starts it again: we, slurm (it has), or nobody."""

    reason: str
    by: str

    @property
    def ours(self) -> bool:
        """Whether we have to requeue the job."""
        return self.by == "we"


def judge(
    fields: Mapping[str, str], *, restart: int, signal: str, near: float, now: float
) -> Verdict:
    """The verdict on a job from the ``fields`` of ``scontrol show job``, times in seconds.

    ``restart``: its SLURM_RESTART_COUNT as this process began; ``signal``: what the process heard;
    ``near``: seconds before the limit at which USR2 was asked for.
    """
    state = fields.get("JobState", "")
    if int(fields.get("Restarts", "0")) > restart:
        return Verdict("requeued by SLURM", "slurm")
    if signal == TIME_LIMIT or fields.get("Reason") == "TimeLimit" or state == "TIMEOUT":
        return Verdict(TIME_LIMIT, "we")
    if _time(fields.get("PreemptTime")) is not None:
        return Verdict("preempted", "we")
    if state not in ("RUNNING", "SIGNALING"):
        return Verdict("cancelled", "nobody")
    if signal in _ENDED_BY_HAND:
        return Verdict(signal, "nobody")
    end = _time(fields.get("EndTime"))
    if end is not None and end - now <= near + _LOOKS_EVERY:
        return Verdict(TIME_LIMIT, "we")
    return Verdict(signal, "we")


def _time(said: str | None) -> float | None:
    return float(said) if said is not None and said.isdecimal() else None


def show_job(job: str) -> dict[str, str]:
    """What scontrol says of a job, times in seconds since 1970; OSError where it says nothing."""
    return _fields(_scontrol("show", "job", "-o", job))


def show_grace(partition: str) -> float | None:
    """Seconds between a preemption's first signal and KILL in a partition, None if not known."""
    try:
        said = _scontrol("show", "partition", "-o", partition)
        grace = re.search(r"\bGraceTime=(\d+)", said)
        wait = re.search(r"KillWait\s*=\s*(\d+)", _scontrol("show", "config"))
    except OSError:
        return None
    known = [float(match[1]) for match in (grace, wait) if match]
    return max(known, default=None)


def limits() -> tuple[float | None, float | None]:
    """When this process's job will be ended (seconds since 1970), and a preemption's grace.

    None for what is not known; OSError where SLURM says nothing.
    """
    own = own_job()
    fields = show_job(own[0]) if own else {}
    partition = fields.get("Partition")
    return _time(fields.get("EndTime")), show_grace(partition) if partition else None


def requeue(job: str) -> None:
    """``scontrol requeue``; OSError with what it says where that fails."""
    _scontrol("requeue", job)


def claim_requeue(folder: Path, job: str, restart: int) -> bool:
    """Whether this process is the one that requeues this start of the job: one of all is."""
    try:
        (folder / f"requeue.{job}.{restart}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def own_job() -> tuple[str, int] | None:
    """(job id, restart count) of the SLURM job this process is in; None outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    return (job, int(os.environ.get("SLURM_RESTART_COUNT", "0"))) if job else None


def ask(signal: str, near: float) -> Verdict:
    """The verdict on this process's own job; where SLURM says nothing, nobody requeues it."""
    own = own_job()
    if own is None:
        return Verdict(signal, "nobody")
    try:
        fields = show_job(own[0])
    except OSError as error:
        return Verdict(f"{signal} (SLURM does not say why: {error})", "nobody")
    return judge(fields, restart=own[1], signal=signal, near=near, now=time.time())


def _fields(said: str) -> dict[str, str]:
    return {name: value for name, value in reversed(_FIELD.findall(said))}


def _scontrol(*words: str) -> str:
    try:
        done = subprocess.run(
            ["scontrol", *words],
            env=os.environ | {"SLURM_TIME_FORMAT": "%s"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"scontrol gave no answer within {_ASK_SECONDS:.0f} s") from None
    if done.returncode:
        raise OSError(" ".join(done.stderr.split()) or f"scontrol: exit code {done.returncode}")
    return done.stdout
