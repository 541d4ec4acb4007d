"""How often to save so that the least is lost: ``checkpoint.every=auto``."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median

FLOOR = 10.0  # seconds; saves that cost nothing still load a file system that others share
_FIRST_SECONDS = 60.0
_FIRST_STEPS = 20
_STEPS = 100  # steps that the typical step is taken from
_SAVES = 8  # saves that a cost is taken from
_OUTLIER = 10.0  # times the median step: a compilation or a frozen disk, not a step


def best_interval(cost: float, write: float, mtbi: float, *, floor: float = FLOOR) -> float:
    """Seconds from the start of a save to the start of the next that lose the least.

    ``cost`` is the training lost to one save (the stall, and the slow-down of the steps while the
    writer runs), ``write`` the time from its start until it counts, ``mtbi`` the mean time between
    interruptions of the job; all in seconds.

    Interruptions come at random, 1/mtbi a second (exponential). A life of the job, from one
    interruption to the next, restarts for R seconds and then saves every P. Its k-th save counts if
    the life lasts beyond R + kP + write; the first holds P seconds of training, each later one
    P - cost more. With x = P/mtbi and k = cost/mtbi, the share of all time that is kept is the sum

        exp(-(R + write)/mtbi) * ((x - k)/(exp(x) - 1) + k exp(-x)).

    Restart and write are a factor apart: whatever they are, the best P is the same, and the write
    only forbids to save more often than it takes. For k << x << 1 what is lost is k/x + x/2: the
    cost of each save, and half an interval at each interruption. That is least at
    P = sqrt(2 cost mtbi) (Young 1974), which is what is taken. Daly's higher-order estimate (2006),
    sqrt(2 cost mtbi) * (1 + y/3 + y^2/9) with y = sqrt(k/2), is of lives whose first save, too,
    comes after P - cost seconds of training. Against the best P for the sum above, both lose less
    than 0.00003 of the time more up to k = 0.02; Young's no more than that up to k = 0.1 and less
    than 0.01 at any k, Daly's 0.001 at k = 0.1 and up to 0.026.

    At most mtbi, at least ``write`` and ``floor`` (where mtbi is longer). ValueError for a cost or
    write below 0, or an mtbi that is not above 0.
    """
    if not (cost >= 0 and write >= 0 and mtbi > 0):
        raise ValueError(f"cost={cost}, write={write} must be at least 0 and mtbi={mtbi} above 0")
    best = min(math.sqrt(2 * cost * mtbi), mtbi)
    return max(best, write, min(floor, mtbi))


class AutoInterval:
    """The best interval, from what the saves of this process were measured to cost.

    Tell it every step and every finished save; ``seconds`` is the interval now. Nothing is known
    at first, so the first save is due after 20 steps, a minute at most.
    """

    def __init__(self, mtbi: float, *, floor: float = FLOOR) -> None:
        self._mtbi = mtbi
        self._floor = floor
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._slowed: list[float] = []
        self._was_writing = False
        self._stalls: deque[float] = deque(maxlen=_SAVES)
        self._extras: deque[float] = deque(maxlen=_SAVES)
        self._writes: deque[float] = deque(maxlen=_SAVES)
        self._saves = 0

    def step(self, seconds: float, writing: bool) -> None:
        """A step took ``seconds``, stalls left out; ``writing``: the writer was busy meanwhile."""
        if not writing:
            self._steps.append(seconds)
        elif self._was_writing:
            self._slowed.append(seconds)
        else:  # of a save before this one that failed nothing is kept
            self._slowed = [seconds]
        self._was_writing = writing

    def saved(self, stall: float, write_seconds: float) -> None:
        """A save is finished: training stood for ``stall`` seconds, the writer took the others."""
        self._saves += 1
        if self._saves == 2:
            # The first save also touches its memory first and writes the frozen weights: it gives
            # way to one like all that follow.
            for kept in (self._stalls, self._extras, self._writes):
                kept.clear()
        self._stalls.append(stall)
        self._extras.append(sum(self._slowed) - len(self._slowed) * self._typical())
        self._writes.append(write_seconds)
        self._slowed = []

    def _typical(self) -> float:
        """Seconds of a step while nothing is written.

        Not their median: loaders deliver in bursts, and what is sought is the difference of sums.
        """
        if not self._steps:
            return fmean(self._slowed) if self._slowed else 0.0
        limit = _OUTLIER * median(self._steps)
        return fmean(step for step in self._steps if step <= limit)

    @property
    def cost(self) -> float:
        """Seconds of training that a save loses; 0 before the first is measured."""
        if not self._saves:
            return 0.0
        return median(self._stalls) + max(0.0, median(self._extras))

    @property
    def write(self) -> float:
        """Seconds from the start of a save until it counts; 0 before the first is measured."""
        return median(self._stalls) + median(self._writes) if self._saves else 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the start of a save (or of training) until the next one is due."""
        if self._saves:
            return best_interval(self.cost, self.write, self._mtbi, floor=self._floor)
        first = min(_FIRST_SECONDS, self._mtbi)
        if len(self._steps) < _FIRST_STEPS:
            return first
        return min(first, _FIRST_STEPS * self._typical())
