"""How long training stands still while its state is saved, and how slow the steps behind it are."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from adafilter_dist.checkpoint.saver import Saved, Saver
from adafilter_dist.checkpoint.store import Position, check_finite
from adafilter_dist.data.loading.batch import DeviceBatch
from adafilter_dist.engine import FullState
from adafilter_dist.run.ownership import claim
from adafilter_dist.training.delayed_metrics import DelayedMetrics
from adafilter_dist.training.environment import describe_environment
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session, frozen_tensor_names

QUIET = 3  # steps a round that nothing disturbs
OURS, WAITED = "Saver", "Saver, then result(wait=True)"
PLAIN, SYNCED = "torch.save", "torch.save and fsync"
Times = dict[str, list[float]]


class Steps:
    """Training steps of a session, one at a time, timed until the device has done them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.done = 0
        self._delayed = DelayedMetrics(DELAY)
        self._batches = self._endless()

    def _endless(self) -> Iterator[DeviceBatch]:
        for epoch in range(10**9):
            with self.session.epoch(epoch) as batches:
                yield from batches

    def run(self) -> float:
        """Seconds of the next step; the first of an epoch waits for its loader and is not told."""
        while True:
            epoch, first = divmod(self.done, self.session.steps_per_epoch)
            began = time.perf_counter()
            figures, _ = self.session.step.run(
                self.done, epoch, self._batches, 1e-3, stop=False, save=False
            )
            self._delayed.push(self.done, figures)
            list(self._delayed.ready(self.done))
            self.wait()
            self.done += 1
            if first:
                return time.perf_counter() - began

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.session.world.device.type == "cuda":
            torch.cuda.synchronize()


def save(steps: Steps, saver: Saver) -> dict[str, float]:
    """Does what `CheckpointSchedule.save` does; seconds of each part, in which training stands."""
    session = steps.session
    began = time.perf_counter()
    state = session.full_state()
    check_finite(state)
    checked = time.perf_counter()
    environment = describe_environment(
        session.recipe, 1, session.world.threads, session.loader.kind, session.kernels
    )
    saver.save(state, Position(step=steps.done), {"environment": environment})
    copied = time.perf_counter()
    return {"check": checked - began, "copy": copied - checked, "stall": copied - began}


def first_save(steps: Steps, run: Path) -> tuple[Saver, float]:
    """A run's saver after its first save, and how long training stood for that."""
    saver = Saver(claim(run), keep=2)
    saver.start_from(frozen_tensor_names(steps.session.engine.model), None, None)
    steps.run()
    stall = save(steps, saver)["stall"]
    published(saver)
    return saver, stall


def published(saver: Saver) -> Saved:
    result = saver.result(wait=True)
    if not isinstance(result, Saved):
        raise SystemExit(f"a save failed: {result}")
    return result


def saves(steps: Steps, saver: Saver, plain: Path, rounds: int) -> Times:
    """Seconds, a value a round; of ``step`` and ``busy step`` one a step.

    ``slower`` is the ratio of the round's mean steps with and without the writer, less one.
    """
    times: Times = defaultdict(list)
    for _ in range(rounds):
        quiet = [steps.run() for _ in range(QUIET)]
        times["step"] += quiet

        steps.run()
        parts = save(steps, saver)
        times[OURS].append(parts["stall"])
        times["check"].append(parts["check"])
        times["copy"].append(parts["copy"])
        result, busy = None, []
        while result is None:
            busy.append(steps.run())
            result = saver.result()
        if not isinstance(result, Saved):
            raise SystemExit(f"a save failed: {result}")
        times["write"].append(result.seconds)
        times["busy steps"].append(len(busy))
        times["busy step"] += busy
        times["slower"].append(statistics.fmean(busy) / statistics.fmean(quiet) - 1)
        times["extra"].append(sum(busy) - len(busy) * statistics.fmean(quiet))

        steps.run()
        began = time.perf_counter()
        save(steps, saver)
        published(saver)
        times[WAITED].append(time.perf_counter() - began)

        for way in (PLAIN, SYNCED):
            steps.run()
            times[way].append(torch_save(steps.session.full_state(), plain, way == SYNCED))
    return times


def torch_save(state: FullState, path: Path, synced: bool) -> float:
    """Seconds of torch.save; in any case the file is on disk when this returns."""
    content = {"model": state.model, "optimizer": state.optimizer, "scaler": state.scaler}
    with path.open("wb") as file:
        began = time.perf_counter()
        torch.save(content, file)
        took = time.perf_counter() - began
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - began if synced else took
