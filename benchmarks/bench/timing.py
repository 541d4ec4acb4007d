"""Variants side by side: interleaved rounds, medians with quartiles, ratios within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist

Sample = Mapping[str, float]
"""Seconds by phase of one piece of work; the whole of it is one of the phases."""
Say = Callable[[str], None]
R = TypeVar("R")


class Clock:
    """Points in time on a device: events of its stream on a GPU, the wall's clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def start(self) -> None:
        """Wait for what was asked of the device before, and mark the beginning."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self._times.clear()
        self._events.clear()
        self.mark()

    def mark(self) -> None:
        """End a phase and begin the next."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def phases(self) -> list[float]:
        """Seconds of each phase since the start."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
            return [a.elapsed_time(b) / 1000 for a, b in pairwise(self._events)]
        return [b - a for a, b in pairwise(self._times)]


def interleave(
    works: Mapping[str, Callable[[], Sample]], repeats: int, say: Say, *, warm_up: int = 2
) -> dict[str, list[Sample]]:
    """Run all works once a round, `repeats` rounds after `warm_up` that do not count.

    The order turns by one from round to round (A B C, B C A, ...), so that no variant is always the
    one behind a certain other, or the first after a pause.
    """
    names = list(works)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(-warm_up, repeats):
        turn = number % len(names)
        words = []
        for name in names[turn:] + names[:turn]:
            sample = works[name]()
            words.append(f"{name} {1000 * max(sample.values()):.0f} ms")
            if number >= 0:
                samples[name].append(sample)
        what = "warm-up" if number < 0 else f"round {number + 1}/{repeats}"
        say(f"{what}: {', '.join(words)}")
    return samples


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """ValueError where there are none."""
        if not values:
            raise ValueError("no values to take the median of")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


@dataclass(frozen=True)
class Ratio:
    """One variant over another: of the medians, and the median over the rounds' own ratios.

    Where the two differ, the machine was not quiet: a disturbance of some rounds moves both
    variants, which the second forgives.
    """

    of_medians: float
    by_round: float

    @classmethod
    def of(cls, these: Sequence[float], those: Sequence[float]) -> Ratio:
        """`these` over `those`, of the same rounds."""
        rounds = [a / b for a, b in zip(these, those, strict=True)]
        return cls(
            statistics.median(these) / statistics.median(those),
            statistics.median(rounds),
        )


def median_and_extremes(seconds: Sequence[float], scale: float = 1000.0, digits: int = 0) -> str:
    """``median (lowest to highest)``, in milliseconds unless ``scale`` says otherwise."""
    low, middle, high = (
        f"{scale * pick(seconds):.{digits}f}" for pick in (min, statistics.median, max)
    )
    return f"{middle} ({low} to {high})"


def timed_on_all_ranks(device: torch.device, work: Callable[[], R]) -> tuple[float, R]:
    """Seconds until every rank has done its work, and what this rank's work returned."""
    dist.barrier()
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter() - began, result


def phase(samples: Sequence[Sample], name: str) -> list[float]:
    """That phase's seconds, round by round."""
    return [sample[name] for sample in samples]
