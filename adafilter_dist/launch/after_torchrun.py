"""After torchrun in a batch script: finds out how the run ended, and requeues the job if needed.

torchrun hides its ranks' exit codes, so the run folder is read instead:

finished                   by this job or before it              exit 0
stopped                    it has saved: as requeue.py says      exit 0
hung                       a rank hung, others ended all   requeued, unless it is cancelled
crashed                    a rank left an error of its own       nobody requeues, exit 1
cut                        ranks are gone that said nothing: requeued where SLURM names an end of
                           the job, or a node does not answer; else one was killed, as a crash
"""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from adafilter_dist.launch.requeue import RequeueDecision, decide_for_own_job, requeue_run
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import newest_owner
from adafilter_dist.slurm.environment import SlurmEnvironment, own_job
from adafilter_dist.system.json_files import text, whole

_ANSWER_SECONDS = 60.0
_say = partial(print, flush=True)


@dataclass(frozen=True)
class Ending:
    """How a run ended, and the reason in its status.json."""

    kind: Literal["finished", "stopped", "hung", "crashed", "cut"]
    reason: str = ""


def finish_job(run: Path, signal_name: str, code: int, *, signal_before: float) -> int:
    """Requeue the job if that is ours to do; returns the exit code of the batch script.

    ``signal_name``: the signal that the batch shell got, if any; ``code``: srun's exit code;
    ``signal_before``: seconds before the limit at which SLURM was to signal.
    """
    job, restart = own_job() or ("0", 0)
    ending = how_it_ended(run, job, restart, code)
    if ending.kind == "finished":
        return 0
    decision = decide_after_torchrun(ending, signal_name, signal_before)
    if decision.by != "nobody":
        return 0 if requeue_run(run, job, decision, _say) else 1
    if ending.kind == "stopped":
        return 0
    _say(
        f"{run}: {decision.reason or 'failed'}; job {job} is not requeued. What was saved is kept: "
        "the same sbatch command goes on from there"
    )
    return code or 1


def how_it_ended(run: Path, job: str, restart: int, code: int) -> Ending:
    """What the run folder says of this start of the job."""
    owner = newest_owner(run)
    if owner is None or (owner.job, owner.restart) != (job, restart):
        # This start of the job never claimed the run, or the run was finished before.
        return Ending("finished" if code == 0 else "cut")
    status = RunFiles(run).read_status()
    state, reason = text(status, "state"), text(status, "reason") or ""
    if whole(status, "attempt") == owner.attempt:
        if state == "finished":
            return Ending("finished")
        if state == "stopped":
            return Ending("stopped", reason)
    if RunFiles(run).attempt(owner.attempt).hung.exists():
        return Ending("hung", reason)
    if RunFiles(run).attempt(owner.attempt).has_failures():
        return Ending("crashed", reason)
    lost = reason.startswith("LostPeerError") or state != "failed"
    return Ending("cut" if lost else "crashed", reason)


def decide_after_torchrun(
    ending: Ending, signal_name: str, signal_before: float
) -> RequeueDecision:
    """Who requeues the job, and why."""
    if ending.kind in ("stopped", "hung"):
        return decide_for_own_job(signal_name or ending.reason, signal_before)
    # Without a signal, a near time limit does not explain the end: -inf makes no limit near.
    decision = decide_for_own_job(signal_name, signal_before if signal_name else -math.inf)
    if decision.by == "slurm":
        return decision
    if ending.kind == "crashed":
        return RequeueDecision(ending.reason, "nobody")
    if decision.reason or decision.by == "nobody":
        return decision
    if not nodes_answer():
        return RequeueDecision("node lost", "we")
    return RequeueDecision(ending.reason or "a process ended without a word (killed?)", "nobody")


def nodes_answer() -> bool:
    """Whether every node of this job still runs a command."""
    nodes = SlurmEnvironment().nodes
    if nodes == 1:
        return True
    try:
        asked = subprocess.run(
            ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--gres=none", "true"],
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
