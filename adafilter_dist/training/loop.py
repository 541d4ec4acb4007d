"""The training loop: steps, validation, checkpoints, and one agreed way to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from typing import Literal

from adafilter_dist.checkpoint.store import Position
from adafilter_dist.data.loading.batch import DeviceBatch
from adafilter_dist.errors import DivergedError
from adafilter_dist.evaluate import evaluate
from adafilter_dist.evaluate.gate_probe import GateMovement, ProbeGates, ValidationProbe
from adafilter_dist.metrics import Metrics
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.training.best import write_best
from adafilter_dist.training.checkpointing import CheckpointSchedule
from adafilter_dist.training.cost import StepClock
from adafilter_dist.training.delayed_metrics import DelayedMetrics
from adafilter_dist.training.gate_decision import (
    decide_on_pictures,
    decision_is_due,
    decision_step,
)
from adafilter_dist.training.gate_watch import GateWatch
from adafilter_dist.training.loader_callback import LoaderWithCallback
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session
from adafilter_dist.training.step import Figures, lr_factor_at
from adafilter_dist.training.stop_policy import StopPolicy

_ROWS = 10
"""Training rows that a run has at least, if it has as many steps."""


class Trainer:
    """Trains a session from a position to the end of its last epoch, or until asked to stop."""

    def __init__(
        self,
        session: Session,
        run: RunFolder,
        save_schedule: CheckpointSchedule,
        metrics: Metrics,
        stop_policy: StopPolicy,
        position: Position,
        start: ProbeGates | None = None,
    ) -> None:
        self.session = session
        self.position = position
        self.clock = StepClock()
        self._run = run
        self._save_schedule = save_schedule
        self._metrics = metrics
        self._stop_policy = stop_policy
        self._start = start
        self._stop = stop_policy.stop
        self._progress = session.world.progress
        self._delayed = DelayedMetrics(DELAY)
        gates = session.trainable.gates
        learned = gates is not None and gates.settings.mode == "learned"
        self._watch = GateWatch(gates if learned else None)
        self._row_at = time.monotonic()
        self._row_step = position.step
        self._row_wait = 0.0
        self._started = False
        # A short run has its curve too.
        self._row_every = min(session.recipe.log.every, max(1, session.total_steps // _ROWS))
        self._step_seconds = 0.0
        self._decision_step = decision_step(session.trainable, session.total_steps)
        self._asked_to_stop = False  # by any rank, as the figures of any step said
        self._done_at: dict[int, float] = {}  # when each step ended whose figures are not yet read

    def run(self) -> Literal["finished", "stopped"]:
        """Train; "stopped" means that all is saved and the same command resumes from here."""
        per_epoch, total = self.session.steps_per_epoch, self.session.total_steps
        while True:
            # At an epoch's end, also when resumed just there: save, validate, write best/.
            epoch, first = divmod(self.position.step, per_epoch)
            if first == 0 and epoch > self.position.validated:
                self.save()  # a stop during the evaluation loses no step
                if self._asked_to_stop and self.position.step < total:
                    return self._stopped()
                with self._progress.apart("evaluating"):
                    self._finish_epoch(epoch - 1)
            if self.position.step == total:
                with self._progress.apart("saving"):
                    self._save_schedule.note(wait=True)
                return "finished"

            # The gate's decision on pictures ends a stretch of steps, as an epoch's end does.
            until, decision = per_epoch, self._decision_step
            if decision_is_due(self.session.trainable, self.position.step, decision):
                self._decide()
            elif decision is not None and first < decision - epoch * per_epoch < per_epoch:
                until = decision - epoch * per_epoch

            # The steps that are left of this epoch. A wish to save or to stop travels with the
            # figures of a step, so all ranks see it after the same step and act together.
            self._progress.begin_epoch()
            with self.session.epoch(epoch, first) as coming:
                batches = self._started_loader(coming)
                for _ in range(first, until):
                    began = time.monotonic()
                    with self.clock.step():
                        self._train_step(epoch, batches)
                        self._progress.move("reading figures")  # on a GPU it waits for the device
                        asked_to_save = self._read()
                    self._note_step(time.monotonic() - began, epoch)
                    if self._asked_to_stop or asked_to_save:
                        self.save()
                    if self._asked_to_stop:
                        return self._stopped()

    def _stopped(self) -> Literal["stopped"]:
        with self._progress.apart("saving"):
            self._save_schedule.note(wait=True)
        return "stopped"

    def _started_loader(self, batches: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Await the attempt's first batch here: starting is no part of what steps take and wait."""
        if self._started:
            return batches
        self._progress.move("waiting for a batch", self.position.step)
        first = next(batches)
        self._started, self._row_at = True, time.monotonic()
        return chain([first], batches)

    def _train_step(self, epoch: int, batches: Iterator[DeviceBatch]) -> None:
        session, step = self.session, self.position.step
        figures, skipped = session.step.run(
            step,
            epoch,
            batches,
            lr_factor_at(session.recipe, step, session.steps_per_epoch),
            stop=self._stop.raised,
            save=self._save_schedule.due(step),
            gradient=(step + 1) % self._row_every == 0,
        )
        self.position = replace(self.position, step=step + 1)
        self._delayed.push(step, figures)
        self._done_at[step] = time.monotonic()
        # Before the decision on pictures all gates are 1, as they should be.
        if self._decision_step is None or step >= self._decision_step:
            self._watch.step()
        for line in session.step.new_notices():
            self._metrics.say(line)
        if skipped:
            self._metrics.event("overflow", step=step)
        self._metrics.advance(step + 1, epoch)

    def _note_step(self, took: float, epoch: int) -> None:
        """Write to status.json that a step is done."""
        self._progress.step_done(took)
        self._save_schedule.step_took(took)
        self._step_seconds += 0.1 * (took - self._step_seconds) if self._step_seconds else took
        self._note_needs()
        self._run.tick(
            step=self.position.step,
            epoch=epoch,
            phase="training",
            step_seconds=round(self._step_seconds, 4),
        )

    def _note_needs(self) -> None:
        """Work out how long a stop takes: steps until all ranks know of it, then a save."""
        if not self._save_schedule.seconds:
            return
        needs = (DELAY + 1) * self._step_seconds + self._save_schedule.seconds
        every = self.session.recipe.checkpoint.every
        if warning := self._stop_policy.stop_takes(needs, every):
            self._metrics.say(f"warning: {warning}")

    def _read(self, *, drain: bool = False) -> bool:
        """Log the steps whose figures are due, and note a wish to stop; returns whether to save.

        ``drain`` reads all steps' figures, due or not. In epochs of no more than ``DELAY`` steps
        that is the only time when they are read, so wishes to stop are noted then too.
        """
        save = False
        ready = self._delayed.drain() if drain else self._delayed.ready(self.position.step - 1)
        for step, values in ready:
            figures = Figures.of(step, values)
            done_at = self._done_at.pop(step)
            self._asked_to_stop |= figures.stop > 0
            save |= figures.save > 0
            self._row_wait += figures.wait
            rate = lr_factor_at(self.session.recipe, step, self.session.steps_per_epoch)
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
        if self.session.trainable.gates is not None:
            row |= {"gate_mean": figures.gate_mean, "gate_variance": figures.gate_variance}
            if self._start is not None:
                row["gate_drift"] = figures.gate_mean - self._start.mean
            if math.isfinite(figures.gate_gradient):
                row["gate_gradient"] = figures.gate_gradient
        epoch = figures.step // self.session.steps_per_epoch
        self._metrics.train(figures.step + 1, epoch, row)
        self._row_at, self._row_step, self._row_wait = now, figures.step + 1, 0.0

    def _decide(self) -> None:
        """Let the gate decide on pictures, by the losses that each choice has on them now."""
        began = time.monotonic()
        with self._progress.apart("deciding on pictures"):
            decided = decide_on_pictures(self.session, self._on_decision_batch)
        self.session.step.network_changed()
        self._metrics.event(
            "gate_decision",
            step=self.position.step,
            seconds=round(time.monotonic() - began, 3),
            **asdict(decided),
        )
        apart = "" if decided.contrast is None else f", contrast {decided.contrast:.2f} nats"
        self._metrics.say(
            f"step {self.position.step}: the gate decides by the losses of {decided.pictures:,} "
            f"training pictures: {decided.frozen_loss:.3f} with pre-trained filters, "
            f"{decided.tuned_loss:.3f} with fine-tuned ones, {decided.decided_loss:.3f} as decided "
            f"({decided.tuned:.1%} fine-tuned{apart})"
        )
        # No time of the steps', nor of those whose figures are not yet read.
        pause = time.monotonic() - began
        self._row_at += pause
        self._done_at = {step: at + pause for step, at in self._done_at.items()}

    def _on_decision_batch(self) -> None:
        self._progress.move("deciding on pictures")
        self._run.tick(phase="deciding")
        self._save_schedule.note()

    def _finish_epoch(self, epoch: int) -> None:
        """Validate, export the best model so far, and warn if the gates no longer decide."""
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
        evaluator = self.session.evaluator
        batches = evaluator.loader("val", 2 * self.session.recipe.train.micro_batch)
        loader = LoaderWithCallback(batches, self._on_evaluation_batch)
        start = self._start
        with self.session.whole_model() as model:
            probe = ValidationProbe(model, evaluator) if start and start.split == "val" else None
            recorder = probe.recorder if probe is not None else None
            result = evaluate(model, loader, evaluator.settings, evaluator.num_classes, recorder)
        row = result.row()
        if start is not None and probe is not None:
            row |= GateMovement.between_probes(start, probe.complete()).row()
        self._metrics.evaluation(self.position.step, epoch, "val", row)
        return result.top1

    def _on_evaluation_batch(self) -> None:
        self._progress.move("evaluating")
        self._run.tick(phase="evaluating")
        self._save_schedule.note()

    def _export(self, *, last: bool) -> bool:
        """Write best/; False if the disk refused it, which is fatal only in the last epoch."""
        try:
            write_best(self.session, self._run)
        except OSError as error:
            if last:
                raise
            self._metrics.say(f"warning: best/ not written: {error}; training goes on")
            return False
        return True

    def save(self) -> None:
        """Have a checkpoint of this position written while training goes on."""
        self._read(drain=True)  # a resumed run must find the rows of all steps before this one
        with self._progress.apart("saving"):
            self._save_schedule.save(self.position)
