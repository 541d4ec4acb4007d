"""What is said of a rank that hangs."""

from __future__ import annotations

import time
from dataclasses import replace

from adafilter_dist.distributed.heartbeats import Beat, Standing
from adafilter_dist.distributed.progress import Progress
from adafilter_dist.training.hang_description import limit_key


def standing(progress: Progress) -> Standing:
    """As that rank told of itself, hung where it is."""
    place = progress.place
    beat = Beat(1, 0, place.limit, progress.silence, place.calls, place.step, place.where)
    return Standing(0, replace(beat, frame="read in open"), time.monotonic())


def test_the_key_that_gives_a_slow_rank_longer() -> None:
    progress = Progress()
    progress.watch(None, 600)
    progress.move("reading the newest checkpoint")
    assert limit_key(standing(progress), 600) == "engine.timeout"
    for _ in range(5):
        progress.step_done(1)
    progress.move("forward", 5)
    assert limit_key(standing(progress), 600) == "engine.hang"
    # Where engine.timeout is the shorter one, it ends steps, too.
    progress.watch(None, 30)
    assert limit_key(standing(progress), 30) == "engine.timeout"


def test_no_key_helps_a_silent_rank() -> None:
    progress = Progress()
    progress.watch(None, 600)
    silent = standing(progress)
    assert limit_key(replace(silent, beat=replace(silent.beat, frame="")), 600) == ""
    assert limit_key(None, 600) == ""
