"""Where the main thread of a rank is, and how long it may stay there before it counts as hung."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from adafilter_dist.system.progress import Counting, Done

LEAST_SECONDS = 60.0
STEPS = 20
_WARM_STEPS = 3
OF_TIMEOUT = 0.9
"""Of engine.timeout: a hang is told of before a collective gives up, which knows no rank's name."""


@dataclass(frozen=True)
class Place:
    """A place of the main thread. ``since`` is in seconds of `time.monotonic`.

    ``calls`` counts the collectives of the step that were entered so far: ranks wait for the one
    that has entered the fewest. ``limit``: seconds, None where nobody counts them. ``step``
    is None before the first step and after the last.
    """

    where: str = "starting"
    step: int | None = None
    calls: int = 0
    since: float = 0.0
    limit: float | None = None


class Progress:
    """Told by the main thread where it is; read by the thread that watches it.

    A step may take ``hang`` seconds, or (None) 20 times what steps take, 60 s at least. Each part
    of the start, saves, evaluations and the first steps, which may compile, may take most of
    ``timeout``, as does everything where that is shorter. Nothing is watched before :meth:`watch`.
    """

    def __init__(self) -> None:
        self.place = Place(since=time.monotonic())
        self.changed: Callable[[], object] = lambda: None
        """Called when the limit is another one: whoever was told of the old one must know."""
        self._hang: float | None = None
        self._longest: float | None = None
        self._cold = _WARM_STEPS
        self._unlimited = False
        self._step_seconds = 0.0

    def watch(self, hang: float | None, timeout: float) -> None:
        """From now on this rank's times count."""
        self._hang, self._longest = hang, OF_TIMEOUT * timeout
        self.move("starting")

    def unwatch(self) -> None:
        """From now on this rank may take its time."""
        self._longest = None
        self.move("after the end")

    def end_steps(self) -> None:
        """No step comes any more: the last evaluation and the report may take longer than steps."""
        self._cold = 1
        self.place = replace(self.place, step=None)
        self.move("ending")

    def move(self, where: str, step: int | None = None) -> None:
        """The main thread has come to ``where``, of ``step`` if that is another one."""
        self._set(where, self.place.calls, step)

    def enter(self, where: str) -> None:
        """The main thread enters a collective, in which it may wait for the other ranks."""
        self._set(where, self.place.calls + 1, None)

    def step_done(self, seconds: float) -> None:
        """A step is done, and took so long."""
        if self._cold:
            self._cold -= 1
        else:
            mean = self._step_seconds
            self._step_seconds = mean + 0.1 * (seconds - mean) if mean else seconds
        self.move("between steps")

    def begin_epoch(self) -> None:
        """The next step takes longer: the loader starts first."""
        self._cold = max(self._cold, 1)
        self.move("starting an epoch")

    @contextmanager
    def apart(self, where: str) -> Iterator[None]:
        """Around what is no step, such as a save: it may take longer than steps do."""
        cold, self._cold = self._cold, max(self._cold, 1)
        self.move(where)
        try:
            yield
        finally:
            self._cold = cold
            self.move("between steps")

    @contextmanager
    def unlimited(self, where: str) -> Iterator[None]:
        """Around work that may take as long as it needs; the process must still send heartbeats."""
        self._unlimited = True
        self.move(where)
        try:
            yield
        finally:
            self._unlimited = False
            self.move(f"after {where}")

    def watched(self, counting: Counting) -> Counting:
        """``counting``, where each count is a move; then ranks wait for each other's results."""

        @contextmanager
        def watched(what: str, total: int) -> Iterator[Done]:
            def moved(done: int) -> None:
                self.move(what)
                show(done)

            self.move(what)
            with counting(what, total) as show:
                yield moved
            self.enter(f"{what}, waiting for other ranks")

        return watched

    def pardon(self, seconds: float) -> None:
        """Leave out ``seconds`` in which the whole process did not run."""
        self.place = replace(self.place, since=self.place.since + seconds)

    def _set(self, where: str, calls: int, step: int | None) -> None:
        step = self.place.step if step is None else step
        before, limit = self.place.limit, self._limit()
        self.place = Place(where, step, calls, time.monotonic(), limit)
        if limit is None or before is None or not 0.5 < limit / before < 2:
            self.changed()

    def _limit(self) -> float | None:
        if self._unlimited:
            return None
        return self._longest if self._longest is None or self._cold else self.step_limit

    @property
    def silence(self) -> float | None:
        """Seconds for which no heartbeat may come, wherever the main thread is; None: no matter."""
        return None if self._longest is None else self.step_limit

    @property
    def step_limit(self) -> float:
        """Seconds for which this rank may stand still within a step."""
        hang = self._hang
        if hang is None:
            hang = max(LEAST_SECONDS, STEPS * self._step_seconds)
        return hang if self._longest is None else min(self._longest, hang)
