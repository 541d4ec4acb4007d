"""A run whose torchrun has ended inside a batch script: how, and whether the job comes back.

torchrun hides its ranks' exit codes, so the run folder tells how the run ended:

finished                   by this job or before it              exit 0
stopped                    it has saved: as requeue.py says      exit 0
crashed                    a rank left an error of its own       nobody requeues, exit 1
cut                        ranks are gone that said nothing: requeued where SLURM names an end of
                           the job, or a node does not answer; else one was killed, as a crash
"""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adafilter_dist.launch.comeback import come_back
from adafilter_dist.launch.requeue import Verdict, ask, own_job
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.ownership import newest_owner
from adafilter_dist.system.json_files import text, whole

_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How a run ended, and the reason that it noted itself."""

    kind: Literal["finished", "stopped", "crashed", "cut"]
    reason: str = ""


def settle(run: Path, heard: str, code: int, *, near: float) -> int:
    """Requeue the job if that is on us, exactly once; the exit code of the batch script.

    ``heard``: the signal that the batch shell had, if any; ``code``: srun's exit code; ``near``:
    seconds before the limit at which SLURM was to signal.
    """
    job, restart = own_job() or ("0", 0)
    ending = how_it_ended(run, job, restart, code)
    if ending.kind == "finished":
        return 0
    verdict = decide(ending, heard, near)
    if verdict.by != "nobody":
        return 0 if come_back(run, job, verdict, _say) else 1
    if ending.kind == "stopped":
        return 0
    _say(
        f"{run}: {verdict.reason or 'failed'}; job {job} is not requeued. What was saved is kept: "
        "the same sbatch command goes on from there"
    )
    return code or 1


def how_it_ended(run: Path, job: str, restart: int, code: int) -> Ending:
    """What the run folder says of this start of the job."""
    owner = newest_owner(run)
    if owner is None or (owner.job, owner.restart) != (job, restart):
        # It did not come so far as to claim the run, or it found the run finished.
        return Ending("finished" if code == 0 else "cut")
    status = RunFiles(run).read_status()
    state, reason = text(status, "state"), text(status, "reason") or ""
    if whole(status, "attempt") == owner.attempt:
        if state == "finished":
            return Ending("finished")
        if state == "stopped":
            return Ending("stopped", reason)
    if RunFiles(run).attempt(owner.attempt).has_failures():
        return Ending("crashed", reason)
    lost = reason.startswith("LostPeerError") or state != "failed"
    return Ending("cut" if lost else "crashed", reason)


def decide(ending: Ending, heard: str, near: float) -> Verdict:
    """Who requeues the job, and why."""
    if ending.kind == "stopped":
        return ask(heard or ending.reason, near)
    # Without a signal the end of time alone, however near, explains nothing.
    verdict = ask(heard, near if heard else -math.inf)
    if verdict.by == "slurm":
        return verdict
    if ending.kind == "crashed":
        return Verdict(ending.reason, "nobody")
    if verdict.reason or verdict.by == "nobody":
        return verdict
    if not nodes_answer():
        return Verdict("node lost", "we")
    return Verdict(ending.reason or "a process ended without a word (killed?)", "nobody")


def nodes_answer() -> bool:
    """Whether every node of this job still runs what it is given."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes == "1":
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


def _say(line: str) -> None:
    print(line, flush=True)
