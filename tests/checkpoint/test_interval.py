"""The checkpoint interval that loses least, and how it is found from the steps of a run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adafilter_dist.checkpoint.interval import FLOOR, AutoInterval, best_interval

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "checkpoint_interval.py"


def kept(interval: float, cost: float, write: float, mtbi: float) -> float:
    """Share of the time that ends in a checkpoint, save by save, until lives that long are none."""
    saves = np.arange(1, math.ceil(40 * mtbi / interval) + 1)
    lasts = np.exp(-(saves * interval + write) / mtbi)
    holds = np.where(saves == 1, interval, interval - cost)
    return float((lasts * holds).sum() / mtbi)


def least(cost: float, write: float, mtbi: float) -> tuple[float, float]:
    """The best of many intervals that are at least ``write``, and what it keeps."""
    tried = np.geomspace(max(write, mtbi / 2000), 4 * mtbi, 4000)
    best = max(tried, key=lambda interval: kept(interval, cost, write, mtbi))
    return best, kept(best, cost, write, mtbi)


@pytest.mark.parametrize("write", [0.0, 3.0, 40.0])
@pytest.mark.parametrize(
    ("cost", "within"), [(0.1, 0.01), (1.0, 0.01), (10.0, 0.015), (100.0, 0.03)]
)
def test_it_is_where_the_exact_loss_is_least(cost: float, write: float, within: float) -> None:
    found = best_interval(cost, write, 5000.0, floor=0.0)
    best, most = least(cost, write, 5000.0)
    assert found == pytest.approx(best, rel=within)
    assert kept(found, cost, write, 5000.0) >= most - 3e-5


@pytest.mark.parametrize("cost", [600.0, 1500.0, 3000.0, 5000.0, 9000.0, 20000.0])
def test_dear_saves_cost_at_most_a_hundredth_more_than_they_must(cost: float) -> None:
    # A save that costs this much also takes at least as long until it counts.
    found = best_interval(cost, cost, 5000.0)
    assert kept(found, cost, cost, 5000.0) >= least(cost, cost, 5000.0)[1] - 0.01


def test_what_the_docstring_says_of_daly() -> None:
    def lost(interval: float, cost: float) -> float:
        return least(cost, cost, 5000.0)[1] - kept(interval, cost, cost, 5000.0)

    def daly(cost: float) -> float:
        y = math.sqrt(cost / 10000.0)
        return math.sqrt(cost * 10000.0) * (1 + y / 3 + y * y / 9)

    assert lost(daly(100.0), 100.0) < 3e-5
    assert lost(daly(500.0), 500.0) == pytest.approx(1e-3, rel=0.1)
    assert lost(best_interval(500.0, 500.0, 5000.0), 500.0) < 3e-5
    assert 0.025 < max(lost(daly(5000.0 * k), 5000.0 * k) for k in (1.0, 1.1, 1.2, 1.3)) < 0.026


def test_limits() -> None:
    assert best_interval(0.0, 0.0, 7200.0) == FLOOR
    assert best_interval(1e-9, 25.0, 7200.0) == 25.0  # one save in flight
    assert best_interval(1e9, 1.0, 7200.0) == 7200.0
    assert best_interval(0.0, 0.0, 4.0) == 4.0  # a floor above the mtbi would save too late
    assert best_interval(0.0, 9000.0, 7200.0) == 9000.0
    assert best_interval(0.0, 0.0, 7200.0, floor=0.5) == 0.5
    assert best_interval(1.0, 0.0, 7200.0) == pytest.approx(120.0)


@pytest.mark.parametrize("wrong", [(-1.0, 0.0, 1.0), (0.0, -1.0, 1.0), (0.0, 0.0, 0.0)])
def test_impossible_values(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="mtbi"):
        best_interval(*wrong)


def train(auto: AutoInterval, *steps: float, writing: bool = False) -> None:
    for seconds in steps:
        auto.step(seconds, writing)


def save(auto: AutoInterval, *steps: float, stall: float, write: float) -> None:
    train(auto, *steps, writing=True)
    auto.saved(stall, write)


def test_the_first_save_is_after_twenty_steps_or_a_minute() -> None:
    auto = AutoInterval(7200.0)
    assert auto.seconds == 60.0
    train(auto, *[30.0] + [0.5] * 18)
    assert auto.seconds == 60.0
    train(auto, 0.5)
    assert auto.seconds == pytest.approx(10.0)  # the slow first step counts for nothing
    slow = AutoInterval(7200.0)
    train(slow, *[20.0] * 30)
    assert slow.seconds == 60.0
    assert AutoInterval(15.0).seconds == 15.0


def test_the_cost_is_the_stall_and_the_slower_steps() -> None:
    auto = AutoInterval(7200.0)
    train(auto, *[1.0] * 30)
    save(auto, *[1.25] * 8, stall=0.5, write=10.0)
    assert auto.cost == pytest.approx(0.5 + 8 * 0.25)
    assert auto.write == pytest.approx(10.5)
    assert auto.seconds == pytest.approx(math.sqrt(2 * 2.5 * 7200.0))


def test_the_first_save_gives_way_to_the_second() -> None:
    auto = AutoInterval(7200.0)
    train(auto, *[1.0] * 30)
    save(auto, *[2.0] * 40, stall=5.0, write=80.0)
    dear = auto.seconds
    train(auto, *[1.0] * 30)
    save(auto, *[1.1] * 4, stall=0.1, write=4.4)
    assert auto.cost == pytest.approx(0.5)
    assert auto.seconds < dear / 5


def test_steps_that_come_in_bursts_are_no_cost() -> None:
    auto = AutoInterval(7200.0, floor=1.0)
    burst = [0.9] + [0.1] * 7
    for _ in range(5):
        train(auto, *burst * 20)
        save(auto, *burst * 10, stall=0.2, write=16.0)
    assert auto.cost < 0.6  # by their median, 0.1 s, it would be 8.2


def test_faster_steps_do_not_pay_for_the_stall() -> None:
    auto = AutoInterval(7200.0)
    train(auto, *[1.0] * 30)
    save(auto, *[0.5] * 8, stall=0.25, write=4.0)
    assert auto.cost == 0.25


def test_one_frozen_disk_changes_little() -> None:
    auto = AutoInterval(7200.0)
    for number in range(6):
        train(auto, *[1.0] * 30)
        save(auto, *([600.0] if number == 4 else [1.5] * 4), stall=0.1, write=4.0)
    assert auto.cost == pytest.approx(2.1)
    assert auto.seconds == pytest.approx(math.sqrt(2 * 2.1 * 7200.0))


def test_a_save_that_failed_is_not_charged_to_the_next() -> None:
    auto = AutoInterval(7200.0)
    train(auto, *[1.0] * 30)
    train(auto, *[9.0] * 5, writing=True)  # and then no result but an error
    train(auto, *[1.0] * 30)
    save(auto, 1.5, 1.5, stall=0.1, write=3.0)
    assert auto.cost == pytest.approx(1.1)


def test_saves_from_the_first_step_on() -> None:
    auto = AutoInterval(7200.0)
    save(auto, 1.0, 1.0, stall=0.5, write=2.0)
    assert auto.cost == 0.5
    assert AutoInterval(7200.0).cost == 0.0
    auto.saved(0.5, 2.0)  # no step at all meanwhile: the writer was faster
    assert auto.cost == 0.5


def test_it_follows_what_changes() -> None:
    auto = AutoInterval(7200.0)
    for stall in [0.1] * 8 + [10.0] * 8:
        train(auto, *[1.0] * 10)
        save(auto, stall=stall, write=1.0)
    assert auto.cost == pytest.approx(10.0)


def test_the_simulation_agrees() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--lives", "2000", "--stall", "2", "--write", "30"],
        env={**os.environ, "PYTHONPATH": str(BENCHMARK.parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| 4,096 |") == 2
