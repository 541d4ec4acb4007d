"""Heartbeats: each rank says over the store where it is, and hears where the others are.

A thread exchanges them, because a store whose process is stopped does not answer, nor raise.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from adafilter_dist.distributed.progress import Progress
from adafilter_dist.run.ownership import Owner, this_process

_LAST_BEAT_SECONDS = 10.0


@dataclass(frozen=True)
class Beat:
    """What one rank says. ``still``: seconds for which its main thread had not moved by then.

    ``limit``: how long it may stand still where it is; ``silence``: for how long no beat may come.
    None where nobody counts. ``step``: None before the first one and after the last.
    ``hung`` are the ranks that it holds for hung; ``frame``: where its main thread is then.
    ``over``: the run's end is recorded, and nobody need wait any more.
    """

    number: int
    still: float
    limit: float | None
    silence: float | None
    calls: int
    step: int | None
    where: str
    hung: tuple[int, ...] = ()
    frame: str = ""
    over: bool = False


@dataclass(frozen=True)
class Standing:
    """A rank as another one sees it: its last beat, and when it came (`time.monotonic`)."""

    rank: int
    beat: Beat
    came: float

    def still(self, now: float) -> float:
        """Seconds for which its main thread has not moved, as far as is known."""
        return self.beat.still + now - self.came


class Heartbeats:
    """This rank's beats, and the newest ones of all ranks."""

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, progress: Progress, period: float
    ) -> None:
        self._store = dist.PrefixStore("beats", store.clone())  # one that waits blocks its client
        self._rank = rank
        self._ranks = range(world_size)
        self._progress = progress
        self._period = period
        self._number = 0
        self._standings: dict[int, Standing] = {}
        self._owners: dict[int, Owner] = {}
        self._wake = threading.Event()
        self._closed = False
        self.answered = time.monotonic()
        """When the store answered last."""
        self.lost = ""
        """The store's error, once it is gone."""
        self.hung: tuple[int, ...] = ()
        """What this rank says of others; :meth:`tell` sets it."""
        self.frame = ""
        self.over = False
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Begin to send and to listen."""
        self._progress.changed = self._wake.set
        self._thread.start()

    def close(self) -> None:
        """Say that this rank is not watched any more.

        Waits for a store that is slow: a rank that has said nothing is taken for hung by those
        that go on, rank 0 with the report.
        """
        self._closed = True
        self._wake.set()
        self._thread.join(self._period + _LAST_BEAT_SECONDS)

    def tell(self, hung: Sequence[int], frame: str = "", *, over: bool = False) -> None:
        """Say at once which ranks are hung, and where this one's main thread is."""
        self.hung, self.frame, self.over = tuple(hung), frame or self.frame, over or self.over
        self._wake.set()

    def standings(self) -> list[Standing]:
        """All ranks that have been heard of."""
        return list(self._standings.values())

    def owner(self, rank: int) -> Owner | None:
        """The process of a rank."""
        return self._owners.get(rank)

    def pardon(self, seconds: float) -> None:
        """Leave out ``seconds`` in which this process did not run: it heard of nobody."""
        for rank, standing in list(self._standings.items()):
            came = standing.came + seconds
            self._standings[rank] = Standing(rank, standing.beat, came)
        self.answered += seconds

    def _run(self) -> None:
        try:
            self._store.set(f"who {self._rank}", json.dumps(vars(this_process())))
            while not self._closed:
                self._exchange()
                self.answered = time.monotonic()
                self._wake.wait(self._period)
                self._wake.clear()
            self._exchange()  # not watched any more
        except RuntimeError as error:  # its process has ended
            self.lost = str(error).splitlines()[0]

    def _exchange(self) -> None:
        place, now = self._progress.place, time.monotonic()
        self._number += 1
        beat = Beat(
            self._number,
            round(now - place.since, 3),
            place.limit,
            self._progress.silence,
            place.calls,
            place.step,
            place.where,
            self.hung,
            self.frame,
            self.over,
        )
        self._store.set(f"beat {self._rank}", json.dumps(vars(beat)))
        keys = [f"beat {rank}" for rank in self._ranks]
        if len(self._owners) < len(self._ranks):
            names = [f"who {rank}" for rank in self._ranks]
            if not self._store.check([*keys, *names]):
                return
            for rank, name in enumerate(names):
                self._owners[rank] = Owner(**json.loads(self._store.get(name)))
        now = time.monotonic()
        for rank, text in zip(self._ranks, self._store.multi_get(keys), strict=True):
            values: dict[str, Any] = json.loads(text)
            heard = Beat(**{**values, "hung": tuple(values["hung"])})
            before = self._standings.get(rank)
            if before is None or before.beat.number != heard.number:
                self._standings[rank] = Standing(rank, heard, now)


def hung_ranks(standings: Sequence[Standing], now: float) -> list[int]:
    """The ranks that are hung; empty as long as anybody is waited for who may yet come.

    Ranks wait for those that have entered the fewest collectives. Only these can be hung, once
    they have not moved for longer than they may; the others wait for them, and are not.
    """
    if not standings:
        return []
    fewest = min(one.beat.calls for one in standings)
    last = [one for one in standings if one.beat.calls == fewest]
    return [one.rank for one in last if _is_late(one, now)]


def silent_ranks(standings: Sequence[Standing], now: float, period: float) -> list[int]:
    """The ranks without a heartbeat for longer than a step may take, whatever they do.

    Their process is stopped, their interpreter is held, or their node or its network is lost. In a
    save or an evaluation heartbeats go on.
    """
    return [
        one.rank
        for one in standings
        if one.beat.silence is not None and now - one.came > max(one.beat.silence, 3 * period)
    ]


def _is_late(one: Standing, now: float) -> bool:
    return one.beat.limit is not None and one.still(now) > one.beat.limit
