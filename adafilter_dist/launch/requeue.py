"""Decides who requeues an interrupted job, from what SLURM says about it, and requeues it.

JobState                  beside it                    what happened      who requeues
any                       Restarts has grown           SLURM requeued it  SLURM has
COMPLETING, TIMEOUT       Reason=TimeLimit             the time limit     we
any                       PreemptTime is set           a preemption       we (see below)
COMPLETING, CANCELLED     none of these                scancel            nobody
RUNNING, SIGNALING        EndTime is near              the time limit     we
RUNNING, SIGNALING        USR1 or INT                  a user's wish      nobody
RUNNING, SIGNALING        another signal               a signal by hand   we

A preempted job that ends within its grace period is completed for SLURM, and with
PreemptMode=CANCEL it is cancelled: SLURM itself would not start it again.

Rank 0 asks once the run is stopped and saved. When a rank was lost, each of the others asks; the
first to claim the requeue does it (`claim_requeue`).
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.run.files import RunFiles, new_event
from adafilter_dist.slurm.environment import own_job
from adafilter_dist.training.preemption import TIME_LIMIT

_FIELD = re.compile(r"(?:^|\s)(JobState|Restarts|Reason|PreemptTime|EndTime|Partition)=(\S+)")
_ASK_SECONDS = 20.0
# SLURM looks at limits every half minute, and sends what is due then.
_LOOKS_EVERY = 60.0
_ENDED_BY_HAND = ("SIGUSR1", "SIGINT")


@dataclass(frozen=True)
class RequeueDecision:
    """What happened to the job, and who requeues it: we, slurm (it already has), or nobody."""

    reason: str
    by: str

    @property
    def ours(self) -> bool:
        """Whether we have to requeue the job."""
        return self.by == "we"


def decide_requeue(
    fields: Mapping[str, str], *, restart: int, signal: str, signal_before: float, now: float
) -> RequeueDecision:
    """Decide from the ``fields`` of ``scontrol show job``; times are in seconds.

    ``restart``: its SLURM_RESTART_COUNT when this process began; ``signal``: the signal that the
    process got; ``signal_before``: seconds before the limit at which SLURM was to send USR2.
    """
    # What SLURM states itself comes first: requeued already, out of time, preempted, cancelled.
    state = fields.get("JobState", "")
    if int(fields.get("Restarts", "0")) > restart:
        return RequeueDecision("requeued by SLURM", "slurm")
    if signal == TIME_LIMIT or fields.get("Reason") == "TimeLimit" or state == "TIMEOUT":
        return RequeueDecision(TIME_LIMIT, "we")
    if _time(fields.get("PreemptTime")) is not None:
        return RequeueDecision("preempted", "we")
    if state not in ("RUNNING", "SIGNALING"):
        return RequeueDecision("cancelled", "nobody")

    # The job still runs, so the signal itself must tell: a user's wish, or USR2 near the limit.
    if signal in _ENDED_BY_HAND:
        return RequeueDecision(signal, "nobody")
    end = _time(fields.get("EndTime"))
    if end is not None and end - now <= signal_before + _LOOKS_EVERY:
        return RequeueDecision(TIME_LIMIT, "we")
    return RequeueDecision(signal, "we")


def _time(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


def show_job(job: str) -> dict[str, str]:
    """Fields of ``scontrol show job``, times in seconds since 1970; OSError if it gives none."""
    return _fields(_scontrol("show", "job", "-o", job))


def show_grace(partition: str) -> float | None:
    """Seconds between a preemption's first signal and KILL in a partition; None if unknown."""
    try:
        output = _scontrol("show", "partition", "-o", partition)
        grace = re.search(r"\bGraceTime=(\d+)", output)
        wait = re.search(r"KillWait\s*=\s*(\d+)", _scontrol("show", "config"))
    except OSError:
        return None
    waits = [float(match[1]) for match in (grace, wait) if match]
    return max(waits, default=None)


def limits() -> tuple[float | None, float | None]:
    """When this process's job will be ended (seconds since 1970), and a preemption's grace.

    None for what is unknown; OSError if SLURM gives no answer.
    """
    own = own_job()
    fields = show_job(own[0]) if own else {}
    partition = fields.get("Partition")
    return _time(fields.get("EndTime")), show_grace(partition) if partition else None


def requeue(job: str) -> None:
    """``scontrol requeue``; OSError with what it says where that fails."""
    _scontrol("requeue", job)


def claim_requeue(folder: Path, job: str, restart: int) -> bool:
    """Whether this process may requeue this start of the job: True in one process only."""
    try:
        (folder / f"requeue.{job}.{restart}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def decide_for_own_job(signal: str, signal_before: float) -> RequeueDecision:
    """The decision on this process's own job; if SLURM gives no answer, nobody requeues it."""
    own = own_job()
    if own is None:
        return RequeueDecision(signal, "nobody")
    try:
        fields = show_job(own[0])
    except OSError as error:
        return RequeueDecision(f"{signal} (SLURM does not say why: {error})", "nobody")
    return decide_requeue(
        fields, restart=own[1], signal=signal, signal_before=signal_before, now=time.time()
    )


def _fields(output: str) -> dict[str, str]:
    return {name: value for name, value in reversed(_FIELD.findall(output))}


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


def requeue_run(run: Path, job: str, decision: RequeueDecision, say: Callable[[str], None]) -> bool:
    """Record the decision and requeue the job if that is ours to do; returns if it runs again."""
    if decision.by == "nobody":
        return False
    files = RunFiles(run)
    before = files.read_status()
    # Recorded first: once SLURM has the request, the next attempt may begin at any time.
    files.note_state(before, "queued", decision.reason)
    files.add_event(new_event("requeued", reason=decision.reason, by=decision.by, job=job))
    try:
        if decision.by == "we":
            requeue(job)
    except OSError as error:
        files.note_state(before, str(before.get("state", "stopped")), f"{decision.reason}; {error}")
        files.add_event(new_event("not_requeued", error=str(error), job=job))
        say(f"{decision.reason}: SLURM does not requeue job {job}: {error}")
        return False
    say(f"{decision.reason}: job {job} was requeued and goes on from here")
    return True
