"""What each task of a SLURM job runs: one rank of a run, from submission or after a requeue.

submitit pickles an object of this class once and starts it again at every requeue. It holds no
state: that lies in the run folder. Jobs queued by earlier releases hold its module, its name and
its fields: keep these, and give a new field a default.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from adafilter_dist.errors import LostPeerError
from adafilter_dist.launch.requeue import (
    RequeueDecision,
    claim_requeue,
    decide_for_own_job,
    limits,
    requeue_run,
)
from adafilter_dist.slurm.environment import SlurmEnvironment, own_job
from adafilter_dist.system.exit_code import exit_code
from adafilter_dist.system.openmp import set_wait_policy
from adafilter_dist.training.preemption import StopFlag, stop_on_signal
from adafilter_dist.training.stop_policy import StopPolicy

if TYPE_CHECKING:
    from adafilter_dist.recipe import Recipe

_STOPPED = 75
_say = partial(print, flush=True)
# Where a rank failed by itself, srun ends the others within a second or two.
_WAIT_FOR_SRUN = 30.0


@dataclass(frozen=True)
class Job:
    """A verb with its words. ``run`` is the run it trains, ``folder`` where ranks meet.

    ``near``: seconds before the time limit at which SLURM signals; ``grace``: seconds that a
    preemption leaves, None for what SLURM says; ``max_restarts``: in a row without progress;
    ``allow``: keys that may differ from the run's.
    """

    verb: str
    words: tuple[str, ...]
    run: Path | None
    folder: Path
    near: float
    grace: float | None
    max_restarts: int
    interface: str | None
    connect_timeout: float
    allow: tuple[str, ...] = ()

    def __call__(self) -> int:
        """Run as this task's rank; 0, or SystemExit with the code that ends the job as failed."""
        flag = StopFlag()
        with stop_on_signal(flag, last=True):  # from now on: imports take seconds
            self._take_place()
            code = exit_code(lambda: self._do(flag))
        if code:
            sys.stdout.flush()
            raise SystemExit(code)  # an exception would be pickled and told of twice
        return 0

    def _take_place(self) -> None:
        """Set the variables that torchrun would set, from SLURM's."""
        job, restart = own_job() or ("0", 0)
        slurm = SlurmEnvironment()
        if slurm.task is None or slurm.local_task is None:
            raise RuntimeError("not a task of srun: SLURM_PROCID or SLURM_LOCALID is not set")
        set_wait_policy()  # before torch is imported
        for stale in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
            os.environ.pop(stale, None)
        os.environ |= {
            "RANK": str(slurm.task),
            "WORLD_SIZE": str(slurm.tasks),
            "LOCAL_RANK": str(slurm.local_task),
            "LOCAL_WORLD_SIZE": str(slurm.tasks // slurm.nodes),
            "ADAFILTER_MEETING": str(self.folder / f"meeting.{job}.{restart}"),
            "ADAFILTER_CONNECT_TIMEOUT": str(self.connect_timeout),
        }
        if self.interface:
            os.environ["ADAFILTER_INTERFACE"] = self.interface

    def _do(self, flag: StopFlag) -> int:
        if self.run is None or self.verb != "train":
            from adafilter_dist.__main__ import main

            return main([self.verb, *self.words])
        return self._train(self.run, flag)

    def recipe(self) -> Recipe:
        """The recipe of the run that is trained."""
        from adafilter_dist.recipe import load_recipe

        return load_recipe(self.words)

    def _train(self, run: Path, flag: StopFlag) -> int:
        from adafilter_dist.distributed.lost_peer import sign_of_loss
        from adafilter_dist.system.console import Console
        from adafilter_dist.system.importing import importing

        with importing():
            from adafilter_dist.training.attempt import run_attempt

        recipe = self.recipe()
        decisions: list[RequeueDecision] = []

        def explain(signal_name: str) -> str:
            decisions.append(decide_for_own_job(signal_name, self.near))
            return decisions[-1].reason

        first = os.environ["RANK"] == "0"
        stop_policy = StopPolicy(
            flag, explain, self.grace, self.max_restarts, partial(self._requeue_for, run)
        )
        if first:
            self._ask_for_limits(stop_policy)
        try:
            code = run_attempt(
                recipe, Console(soft_wrap=True), allow_mismatch=self.allow, stop_policy=stop_policy
            )
        except LostPeerError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return self._after_loss(run)
        except RuntimeError as error:  # at the start, before anything else explains it
            if sign_of_loss(error) is None:
                raise
            print(f"error: another rank was lost: {error}", file=sys.stderr, flush=True)
            return self._after_loss(run)
        if code != _STOPPED or not first:
            return 0 if code == _STOPPED else code
        job, restart = own_job() or ("0", 0)
        if decisions and claim_requeue(self.folder, job, restart):
            came = requeue_run(run, job, decisions[-1], _say)
            if decisions[-1].ours and not came:
                return 1  # seen in SLURM's own tables, too
        return 0

    def _ask_for_limits(self, stop_policy: StopPolicy) -> None:
        """Ask SLURM when the job ends and how long a preemption waits; a failure is a warning."""
        try:
            stop_policy.stop.ends_at, grace = limits()
        except OSError as error:
            _say(f"warning: SLURM does not say when this job ends: {error}")
            return
        if stop_policy.grace is None:
            stop_policy.grace = grace

    def _after_loss(self, run: Path) -> int:
        """Another rank is gone. If it failed by itself, srun ends us; else requeue the job."""
        _until_ended(_WAIT_FOR_SRUN)
        self._requeue_for(run, "a rank was lost, with its node or its network")
        return 1

    def _requeue_for(self, run: Path, reason: str) -> None:
        """Requeue the job, unless it is cancelled or another rank does so."""
        job, restart = own_job() or ("0", 0)
        decision = decide_for_own_job(reason, self.near)
        if decision.by != "nobody" and claim_requeue(self.folder, job, restart):
            requeue_run(run, job, decision, _say)


def _until_ended(longest: float) -> None:
    """Wait for the signal that ends this task; return where none comes."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    before: Callable[[int, FrameType | None], object] | int | None
    before = signal.signal(signal.SIGTERM, leave)
    try:
        time.sleep(longest)
    finally:
        signal.signal(signal.SIGTERM, before)
