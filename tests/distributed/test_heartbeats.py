"""Which rank is hung, by what all ranks say of themselves, and how long one may stand still."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch.distributed as dist

from adafilter_dist.distributed.heartbeats import (
    Beat,
    Heartbeats,
    Standing,
    hung_ranks,
    silent_ranks,
)
from adafilter_dist.distributed.progress import LEAST_SECONDS, Progress
from adafilter_dist.system.progress import Done

NOW = 1000.0


def standing(
    rank: int, calls: int, still: float, limit: float | None = 60.0, silent: float = 0.0
) -> Standing:
    beat = Beat(1, still - silent, limit, None if limit is None else 60.0, calls, 5, "forward")
    return Standing(rank, beat, NOW - silent)


def test_the_last_rank_is_hung_and_not_those_that_wait_for_it() -> None:
    ranks = [standing(0, 10, 61), standing(1, 9, 61), standing(2, 10, 70)]
    assert hung_ranks(ranks, NOW) == [1]


def test_ranks_wait_for_one_that_may_take_longer() -> None:
    saving = standing(0, 8, 300, limit=540)
    assert hung_ranks([saving, standing(1, 10, 300)], NOW) == []
    finishing = standing(0, 8, 3000, limit=None)
    assert hung_ranks([finishing, standing(1, 10, 300)], NOW) == []


def test_a_slow_rank_that_goes_on_is_not_hung() -> None:
    assert hung_ranks([standing(0, 10, 200), standing(1, 9, 59)], NOW) == []


def test_all_are_named_where_all_have_entered_the_same_collective() -> None:
    assert hung_ranks([standing(0, 10, 61), standing(1, 10, 62)], NOW) == [0, 1]


def test_no_rank_may_be_silent_for_longer_than_a_step_takes() -> None:
    stopped = standing(1, 10, 61, silent=61)
    assert silent_ranks([standing(0, 10, 61), stopped], NOW, 2.0) == [1]
    assert silent_ranks([standing(0, 10, 61), standing(1, 10, 50, silent=50)], NOW, 2.0) == []
    # Heartbeats go on while a rank saves: it was stopped there, or just after it said so.
    assert silent_ranks([standing(1, 10, 61, limit=540.0, silent=61)], NOW, 2.0) == [1]
    assert silent_ranks([standing(1, 10, 61, limit=None, silent=61)], NOW, 2.0) == []


def test_steps_may_take_twenty_times_what_they_take_once_they_are_warm() -> None:
    progress = Progress()
    assert progress.place.limit is None
    progress.watch(None, timeout=600.0)
    for _ in range(3):
        assert progress.place.limit == 540.0
        progress.step_done(100.0)  # compiling
    assert progress.place.limit == LEAST_SECONDS
    progress.step_done(5.0)
    assert progress.place.limit == 100.0
    with progress.apart("saving"):
        assert progress.place.limit == 540.0
        progress.move("saving")
        assert progress.place.limit == 540.0
    assert progress.place.limit == 100.0
    progress.begin_epoch()
    assert progress.place.limit == 540.0
    progress.step_done(5.0)
    assert progress.place.limit == 100.0
    progress.unwatch()
    assert progress.place.limit is None


def test_start_and_end_are_watched_but_for_work_that_takes_what_it_needs() -> None:
    progress = Progress()
    progress.watch(None, timeout=600.0)
    assert (progress.place.limit, progress.place.step) == (540.0, None)
    with progress.unlimited("copying"):
        # Only heartbeats are waited for.
        assert progress.place.limit is None and progress.silence == LEAST_SECONDS
        progress.enter("copying")
        assert progress.place.limit is None
    assert progress.place.limit == 540.0
    for number in range(4):
        progress.move("forward", number)
        progress.step_done(1.0)
    assert (progress.place.limit, progress.place.step) == (LEAST_SECONDS, 3)
    progress.end_steps()
    assert (progress.place.limit, progress.place.step) == (540.0, None)
    progress.unwatch()
    assert progress.silence is None


def test_each_batch_of_an_evaluation_is_a_move_and_its_end_a_wait() -> None:
    progress = Progress()
    progress.watch(None, timeout=600.0)
    told: list[int] = []

    @contextmanager
    def counting(what: str, total: int) -> Iterator[Done]:
        yield told.append

    with progress.watched(counting)("evaluating", 20) as done:
        before = progress.place
        done(10)
        assert progress.place.since > before.since and progress.place.where == "evaluating"
    assert told == [10]
    # A rank that has not come to its end is the one that the others wait for.
    assert progress.place.calls == before.calls + 1


def test_no_limit_is_longer_than_collectives_wait() -> None:
    progress = Progress()
    progress.watch(100.0, timeout=15.0)
    assert progress.place.limit == 13.5
    for _ in range(3):
        progress.step_done(0.1)
    assert progress.place.limit == 13.5


def test_the_last_beat_is_waited_for_where_the_store_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, progress, period = dist.HashStore(), Progress(), 0.05
    beats = Heartbeats(store, 0, 1, progress, period)
    exchange = beats._exchange

    def slow() -> None:
        if progress.silence is None:
            time.sleep(4 * period)
        exchange()

    monkeypatch.setattr(beats, "_exchange", slow)
    progress.watch(30.0, timeout=600.0)
    beats.start()
    progress.unwatch()
    beats.close()
    last = json.loads(dist.PrefixStore("beats", store).get("beat 0"))
    assert (last["limit"], last["silence"], last["where"]) == (None, None, "after the end")


def test_beats_reach_the_other_ranks_and_a_new_limit_does_so_at_once() -> None:
    store = dist.HashStore()
    both = [Progress(), Progress()]
    beats = [Heartbeats(store, rank, 2, both[rank], period=3600.0) for rank in range(2)]
    for progress in both:
        progress.watch(30.0, timeout=600.0)
    for one in beats:
        one.start()
    both[0].changed()  # for the rank that began before the other had said anything
    for _ in range(3):
        both[1].step_done(0.1)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        both[0].changed()
        limits = {one.rank: one.beat.limit for one in beats[0].standings()}
        if limits == {0: 540.0, 1: 30.0}:
            break
        time.sleep(0.01)
    assert limits == {0: 540.0, 1: 30.0}
    owner = beats[0].owner(1)
    assert owner is not None and owner.pid
    for one in beats:
        one.close()
