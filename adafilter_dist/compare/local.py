"""Runs a comparison on this machine: several runs side by side, what is done never again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType

from adafilter_dist.compare import child
from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.progress import CompareProgress
from adafilter_dist.compare.runs import (
    PlannedRun,
    all_runs,
    final_recipe,
    finals_of,
    standing,
    trial_recipe,
    trials_of,
)
from adafilter_dist.compare.tidy import remove_checkpoints
from adafilter_dist.compare.tuning import Choice, choose, outcome_of
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.slurm.cpus import cpus_of_rank
from adafilter_dist.system.files import make_folder

STOPPED = 75
_POLL_SECONDS = 0.2


@dataclass
class Machine:
    """What runs at once here: ``workers`` processes, each with ``threads`` and maybe a GPU."""

    workers: int
    threads: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, workers: int | None) -> Machine:
        """``workers`` processes; by default one a GPU, else as many as the cores have room for."""
        cores, gpus = cpus_of_rank(), _gpus() if recipe.engine.device != "cpu" else ()
        fixed = recipe.engine.threads
        if workers is None:
            workers = len(gpus) or max(1, cores // (fixed or cores))
        return cls(workers, fixed or max(1, cores // workers), gpus)

    def environment(self, slot: int) -> dict[str, str]:
        """The variables of the process in a slot."""
        return {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}


def _gpus() -> tuple[str, ...]:
    """The GPUs that a process here may use; asking torch would take seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip())
    devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return tuple(sorted((number for number in devices if number.isdecimal()), key=int))


@dataclass
class Ending:
    """How the runs ended: ``failures`` in a line each, and whether it was asked to stop."""

    failures: list[str] = field(default_factory=list)
    stopped: bool = False


@contextmanager
def _signals_counted() -> Iterator[list[int]]:
    """The INT and TERM that came; Ctrl-C twice, a second apart, leaves runs unsaved."""
    came: list[int] = []
    last = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal last
        # A terminal and a launcher may each send one for the same wish.
        if not came or time.monotonic() - last > 1.0:
            came.append(number)
        last = time.monotonic()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LocalRunner:
    """Starts what is ready, learns how it ended, until nothing is left or it is asked to stop."""

    def __init__(
        self, plan: Plan, folder: Path, machine: Machine, progress: CompareProgress
    ) -> None:
        self._plan, self._folder = plan, folder
        self._machine, self._progress = machine, progress
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(child.PRELOADED))
        self._standing = {run: standing(run) for run in all_runs(plan, folder)}
        self._choices: dict[str, Choice | None] = {}
        self._failed: dict[PlannedRun, str] = {}
        self._running: dict[int, tuple[ForkServerProcess, PlannedRun, int]] = {}

    def run(self) -> Ending:
        """Run everything that is not done yet."""
        for run, state in self._standing.items():
            self._progress.known(run, state)
        ending = Ending()
        with _signals_counted() as came:
            if self._left() and (code := self._make_ready(came)):
                ending.stopped = bool(came)
                if not came:
                    raise SystemExit(code)  # the process has said why
                return ending
            told = 0
            while True:
                if not came:
                    self._start_more()
                if not self._running:
                    break
                self._collect()
                while told < min(len(came), 2):
                    self._tell_to_stop(kill=told > 0)
                    told += 1
        ending.stopped = bool(came) and bool(self._left())
        if not ending.stopped:
            ending.failures = self._failures()
        return ending

    def conclude(self) -> int:
        """Average, write and print the results; 1 where an average failed."""
        process = self._context.Process(target=child.conclude, args=(str(self._folder),))
        process.start()
        process.join()
        return process.exitcode or 0

    # -- what there is to do

    def _left(self) -> list[PlannedRun]:
        return [run for run, state in self._standing.items() if state == "open"]

    def _next(self) -> PlannedRun | None:
        """The first run that can start now: a trial, or a run whose contender has its choice."""
        busy = {run for _, run, _ in self._running.values()}
        for each in self._plan.contenders:
            trials = trials_of(self._plan, self._folder, each.name)
            for run in trials:
                if self._startable(run, busy):
                    return run
            if any(self._standing[run] == "open" for run in trials):
                continue
            for run in finals_of(self._plan, self._folder, each.name):
                if self._startable(run, busy) and self._choice(each.name) is not None:
                    return run
        return None

    def _startable(self, run: PlannedRun, busy: set[PlannedRun]) -> bool:
        return self._standing[run] == "open" and run not in busy and run not in self._failed

    def _choice(self, contender: str) -> Choice | None:
        """What tuning chose, None where there is nothing to choose; said once."""
        if contender not in self._choices:
            try:
                choice = choose(self._plan, self._folder, contender)
                self._choices[contender] = choice
                if choice.trial is not None:
                    self._progress.say(choice.line)
            except UserError as error:
                self._choices[contender] = None
                self._progress.say(f"warning: {error}")
        return self._choices[contender]

    def _recipe(self, run: PlannedRun) -> Recipe:
        if run.kind == "trial":
            return trial_recipe(self._plan, self._folder, run.contender, run.number)
        choice = self._choice(run.contender)
        assert choice is not None
        settings = choice.settings
        return final_recipe(self._plan, self._folder, run.contender, run.number, settings)

    # -- processes

    def _make_ready(self, came: list[int]) -> int:
        """Prepare and check in a process of its own; its exit code."""
        process = self._context.Process(target=child.make_ready, args=(str(self._folder),))
        process.start()
        told = False
        while process.is_alive():
            process.join(_POLL_SECONDS)
            if came and not told:
                process.terminate()
                told = True
        return process.exitcode or 0

    def _start_more(self) -> None:
        while len(self._running) < self._machine.workers and (run := self._next()) is not None:
            slots = {slot for _, _, slot in self._running.values()}
            slot = next(n for n in range(self._machine.workers) if n not in slots)
            recipe = self._recipe(run)
            engine = recipe.engine.model_copy(update={"threads": self._machine.threads})
            recipe = recipe.model_copy(update={"engine": engine})
            log = self._log(run)
            make_folder(log.parent)
            environment = self._machine.environment(slot)
            process = self._context.Process(
                target=child.train, args=(_plain(recipe), str(log), environment)
            )
            process.start()
            self._running[process.sentinel] = (process, run, slot)
            self._progress.started(run)

    def _collect(self) -> None:
        """Wait a moment for runs that end, and note how they did."""
        for sentinel in wait(list(self._running), timeout=_POLL_SECONDS):
            assert isinstance(sentinel, int)
            process, run, _ = self._running.pop(sentinel)
            process.join()
            self._ended(run, process.exitcode or 0)
        self._progress.refresh()

    def _ended(self, run: PlannedRun, code: int) -> None:
        state = self._standing[run] = standing(run)
        if state == "finished":
            remove_checkpoints(run.path)
        elif state == "open" and code != STOPPED:
            self._failed[run] = _last_words(self._log(run), code)
        elif state == "open":
            self._failed[run] = "stopped"
        outcome = outcome_of(self._plan, run) if run.kind == "trial" else None
        self._progress.ended(run, state, self._failed.get(run, ""), outcome)

    def _tell_to_stop(self, *, kill: bool) -> None:
        count = len(self._running)
        runs = "run" if count == 1 else "runs"
        if kill:
            self._progress.say(f"{count} {runs} killed, unsaved")
        else:
            self._progress.say(f"stopping: {count} {runs} save first; Ctrl-C again kills them")
        for process, _, _ in self._running.values():
            (process.kill if kill else process.terminate)()

    def _log(self, run: PlannedRun) -> Path:
        return self._folder / "logs" / run.path.relative_to(self._folder).with_suffix(".log")

    # -- how it went

    def _failures(self) -> list[str]:
        lines = []
        for run, state in self._standing.items():
            if run in self._failed:
                lines.append(f"{run.title}: {self._failed[run]}; see {self._log(run)}")
            elif run.kind == "final" and state == "diverged":
                lines.append(f"{run.title}: diverged with what tuning chose; see {run.path}")
        for each in self._plan.contenders:
            finals = finals_of(self._plan, self._folder, each.name)
            missing = [run for run in finals if self._standing[run] == "open"]
            missing = [run for run in missing if run not in self._failed]
            if missing:
                lines.append(f"{each.name}: {len(missing)} of {len(finals)} seeds not run")
        return lines


def _plain(recipe: Recipe) -> Mapping[str, object]:
    return recipe.model_dump(mode="json")


def _last_words(log: Path, code: int) -> str:
    """The last error that a run printed, else how its process ended."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    return lines[-1].strip() if lines else f"exit code {code}"
