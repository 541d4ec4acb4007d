"""The training loop: steps, validation, checkpoints, and one agreed way to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from adafilter_dist.checkpoint.store import Position
from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.errors import DivergedError
from adafilter_dist.evaluate import evaluate
from adafilter_dist.metrics import Metrics
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.training.best import write_best
from adafilter_dist.training.checkpointing import Saving
from adafilter_dist.training.delayed_metrics import Delayed
from adafilter_dist.training.gate_watch import GateWatch
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session
from adafilter_dist.training.step import Figures, rate_of
from adafilter_dist.training.stop_policy import Surroundings

_ROWS = 10
"""Training rows that a run has at least, if it has as many steps."""


@dataclass
class Watched:
    """A split's batches; ``on_batch`` is called at each."""

    loader: EvalLoader
    on_batch: Callable[[], None]

    @property
    def total(self) -> int:
        """Samples over all ranks."""
        return self.loader.total

    def __iter__(self) -> Iterator[MicroBatch]:
        for batch in self.loader:
            self.on_batch()
            yield batch


class Trainer:
    """Trains a session from a position to the end of its last epoch, or until asked to stop."""

    def __init__(
        self,
        session: Session,
        run: RunFolder,
        saving: Saving,
        metrics: Metrics,
        around: Surroundings,
        position: Position,
    ) -> None:
        self.session = session
        self.position = position
        self._run = run
        self._saving = saving
        self._metrics = metrics
        self._around = around
        self._stop = around.stop
        self._delayed = Delayed(DELAY)
        self._watch = GateWatch(session.built.gates)
        self._row_at = time.monotonic()
        self._row_step = position.step
        self._row_wait = 0.0
        # A short run has its curve too.
        self._row_every = min(session.recipe.log.every, max(1, session.total_steps // _ROWS))
        self._step_seconds = 0.0
        self._asked_to_stop = False  # by any rank, as read from the figures of any step
        self._done_at: dict[int, float] = {}  # when steps ended whose figures are not yet read

    def run(self) -> Literal["finished", "stopped"]:
        """Train; "stopped" means: saved, and the same words go on from here."""
        per_epoch, total = self.session.steps_per_epoch, self.session.total_steps
        while True:
            epoch, first = divmod(self.position.step, per_epoch)
            if first == 0 and epoch > self.position.validated:
                self.save()  # a stop during the evaluation loses no step
                if self._asked_to_stop and self.position.step < total:
                    return self._stopped()
                self._finish_epoch(epoch - 1)
            if self.position.step == total:
                self._saving.note(wait=True)
                return "finished"
            with self.session.epoch(epoch, first) as batches:
                for _ in range(first, per_epoch):
                    began = time.monotonic()
                    self._train_step(epoch, batches)
                    asked_to_save = self._read()
                    self._note_step(time.monotonic() - began, epoch)
                    if self._asked_to_stop or asked_to_save:
                        self.save()
                    if self._asked_to_stop:
                        return self._stopped()

    def _stopped(self) -> Literal["stopped"]:
        self._saving.note(wait=True)
        return "stopped"

    def _train_step(self, epoch: int, batches: Iterator[DeviceBatch]) -> None:
        session, step = self.session, self.position.step
        figures, skipped = session.step.run(
            step,
            epoch,
            batches,
            rate_of(session.recipe, step, session.steps_per_epoch),
            stop=self._stop.raised,
            save=self._saving.due(step),
        )
        self.position = replace(self.position, step=step + 1)
        self._delayed.push(step, figures)
        self._done_at[step] = time.monotonic()
        self._watch.step()
        if skipped:
            self._metrics.event("overflow", step=step)
        self._metrics.advance(step + 1, epoch)

    def _note_step(self, took: float, epoch: int) -> None:
        """Tell the world outside, which reads status.json, that a step is done."""
        self._saving.step_took(took)
        self._step_seconds += 0.1 * (took - self._step_seconds) if self._step_seconds else took
        self._note_needs()
        self._run.tick(
            step=self.position.step,
            epoch=epoch,
            phase="training",
            step_seconds=round(self._step_seconds, 4),
        )

    def _note_needs(self) -> None:
        """How long a stop takes from now: the steps until all ranks know of it, and a save."""
        if not self._saving.seconds:
            return
        needs = (DELAY + 1) * self._step_seconds + self._saving.seconds
        every = self.session.recipe.checkpoint.every
        if warning := self._around.stop_takes(needs, every):
            self._metrics.say(f"warning: {warning}")

    def _read(self, *, drain: bool = False) -> bool:
        """Log the steps whose figures are due, and note a wish to stop; whether to save.

        What a save drains is noted too: where epochs have no more than ``DELAY`` steps, every
        figure is drained.
        """
        save = False
        ready = self._delayed.drain() if drain else self._delayed.ready(self.position.step - 1)
        for step, values in ready:
            figures = Figures.of(step, values)
            done_at = self._done_at.pop(step)
            self._asked_to_stop |= figures.stop > 0
            save |= figures.save > 0
            self._row_wait += figures.wait
            rate = rate_of(self.session.recipe, step, self.session.steps_per_epoch)
            if not math.isfinite(figures.loss):
                raise DivergedError(
                    f"the loss became {figures.loss} at step {step} (learning rate "
                    f"{rate * self.session.recipe.optim.lr:g}); the last good checkpoint is kept "
                    f"in {self._run.checkpoints}; lower optim.lr, or set train.clip_norm"
                )
            if (step + 1) % self._row_every == 0:
                self._row(figures, rate, done_at)
        return save

    def _row(self, figures: Figures, rate: float, now: float) -> None:
        took, steps = max(now - self._row_at, 1e-9), figures.step + 1 - self._row_step
        row = {
            "loss": figures.loss,
            "penalty": figures.penalty,
            "accuracy": figures.accuracy,
            "lr": rate * self.session.recipe.optim.lr,
            "images_per_second": steps * self.session.recipe.train.global_batch / took,
            "data_wait": min(1.0, self._row_wait / took),
        }
        if self.session.built.gates is not None:
            row |= {"gate_mean": figures.gate_mean, "gate_variance": figures.gate_variance}
        epoch = figures.step // self.session.steps_per_epoch
        self._metrics.train(figures.step + 1, epoch, row)
        self._row_at, self._row_step, self._row_wait = now, figures.step + 1, 0.0

    def _finish_epoch(self, epoch: int) -> None:
        """Validate, keep the best, and say so when the gates stopped deciding."""
        session = self.session
        last = epoch + 1 == session.recipe.train.epochs
        due = last or (epoch + 1) % session.recipe.train.evaluate_every == 0
        has_val = len(session.prepared.split("val")[1]) > 0
        position = replace(self.position, validated=epoch + 1)
        metric: float | None = None
        if due and has_val:
            metric = self._validate(epoch)
        better = metric is not None and (
            position.best_metric is None or metric > position.best_metric
        )
        if (better or (last and not has_val)) and self._export(last=last):
            position = replace(position, best_metric=metric, best_epoch=epoch)
        self.position = position
        for warning in self._watch.end_epoch():
            self._metrics.say(f"warning: {warning}")
            self._metrics.event("gates", epoch=epoch, warning=warning)
        self._row_at, self._row_step = time.monotonic(), self.position.step

    def _validate(self, epoch: int) -> float:
        session = self.session
        with session.whole_model() as model:
            result = evaluate(
                model,
                Watched(session.eval_loader("val"), self._while_evaluating),
                session.preprocess,
                device=session.world.device,
                num_classes=len(session.prepared.classes),
                precision=session.recipe.train.precision,
                channels_last=session.recipe.train.channels_last,
            )
        row = {"loss": result.loss, "top1": result.top1, "top5": result.top5}
        self._metrics.evaluation(self.position.step, epoch, "val", row)
        return result.top1

    def _while_evaluating(self) -> None:
        self._run.tick(phase="evaluating")
        self._saving.note()

    def _export(self, *, last: bool) -> bool:
        """Write best/; False where the disk refused and a later epoch may try again."""
        try:
            write_best(self.session, self._run)
        except OSError as error:
            if last:
                raise
            self._metrics.say(f"warning: best/ not written: {error}; training goes on")
            return False
        return True

    def save(self) -> None:
        """Have a checkpoint of this position written, while training goes on."""
        self._read(drain=True)  # the rows before this step are written before it can be resumed
        self._saving.save(self.position)
