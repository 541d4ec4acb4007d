"""When a checkpoint of a run is due, and what the run reports about each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adafilter_dist.checkpoint.interval import AutoInterval
from adafilter_dist.checkpoint.saver import Failed, Saved, Saver
from adafilter_dist.checkpoint.store import NotFiniteError, Position, check_finite
from adafilter_dist.errors import DivergedError
from adafilter_dist.metrics import Metrics
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.sections.output import Checkpoint
from adafilter_dist.run.ownership import LostRunError
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session


class CheckpointSchedule:
    """Decides when to save, and has it done. Every rank has one; only rank 0's has a saver.

    ``about`` is added to each manifest; ``step`` is that of the checkpoint the attempt resumed.
    """

    def __init__(
        self,
        session: Session,
        saver: Saver | None,
        metrics: Metrics,
        about: Mapping[str, Any],
        place: Path,
        step: int,
    ) -> None:
        self._session = session
        self._saver = saver
        self._metrics = metrics
        self._about = about
        self._place = place
        self._recipe: Checkpoint = session.recipe.checkpoint
        self._interval = (
            AutoInterval(seconds(self._recipe.mtbi)) if self._recipe.every == "auto" else None
        )
        self._began = time.monotonic()
        self._stall = 0.0  # seconds for which the last save held up training
        self.seconds = 0.0
        """How long the last save took, from its begin to its publication; 0 before the first."""
        self.saved_step = step
        """The step of the newest checkpoint that is known to be published."""

    def due(self, step: int) -> bool:
        """Whether this rank asks for a checkpoint; it is written ``DELAY`` steps after ``step``.

        If checkpoints are due by time, only rank 0 asks, because clocks differ.
        """
        every = self._recipe.every
        if isinstance(every, int):
            return (step + 1 + DELAY) % every == 0
        if self._saver is None or self._saver.writing:
            return False
        after = self._interval.seconds if self._interval is not None else seconds(every)
        return time.monotonic() - self._began >= after

    def step_took(self, duration: float) -> None:
        """Count a step of ``duration`` seconds, and report a save that has ended meanwhile."""
        if self._interval is not None and self._saver is not None:
            self._interval.step(duration, self._saver.writing)
        self.note()

    def save(self, position: Position) -> None:
        """Copy the state and have it written while training goes on; collective.

        Waits for the previous save. Raises DivergedError on every rank if the state has NaN or inf:
        such a checkpoint is never published.
        """
        self.note(wait=True)
        self._began = time.monotonic()
        state = self._session.full_state()
        try:
            check_finite(state)  # on every rank, so that all leave together
        except NotFiniteError as error:
            raise DivergedError(
                f"at step {position.step} {error}; the last good checkpoint is kept in "
                f"{self._place}; lower optim.lr, or set train.clip_norm"
            ) from None
        if self._saver is not None:
            self._saver.save(state, position, self._about, self._metrics.files)
            self._stall = time.monotonic() - self._began

    def note(self, *, wait: bool = False) -> None:
        """Report how the last save went, if it has ended; after a failed one training goes on."""
        result = self._saver.result(wait=wait) if self._saver is not None else None
        if isinstance(result, Saved):
            self.saved_step = result.step
            self.seconds = self._stall + result.seconds
            if self._interval is not None:
                self._interval.saved(self._stall, result.seconds)
            self._metrics.event(
                "saved",
                step=result.step,
                folder=result.folder,
                stall=round(self._stall, 4),
                seconds=round(result.seconds, 4),
            )
        elif isinstance(result, Failed):
            if result.lost:
                raise LostRunError(result.error)
            self._metrics.say(
                f"warning: checkpoint of step {result.step} not saved: {result.error}; "
                "training goes on"
            )
            self._metrics.event("save_failed", step=result.step, error=result.error)
