"""Micro-batches brought ahead of need: their order, the bound, and every way out.

The prefetcher here is one for the CPU. It fills its places in turn as CUDA's does, and writes down
what it was asked to do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch

from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer, joined, normalise, to_device
from adafilter_dist.data.loading.prefetch import AHEAD, forward_batches
from adafilter_dist.data.stored.prepared import Prepared
from tests.data.conftest import PREPROCESS, needs_ffcv, train_loader

M, SIDE = 2, PREPROCESS.crop
GIVEN = BatchTransfer(PREPROCESS, torch.device("cpu"))


class Prefetcher:
    """Room for AHEAD + 1 forwards of up to three micro-batches."""

    def __init__(self, size: int = M) -> None:
        shape = (AHEAD + 1, 3 * size, 3, SIDE, SIDE)
        self.images = torch.full(shape, float("nan"))
        self.log: list[tuple[str, int]] = []
        self.threads: set[threading.Thread] = set()
        self.brought = 0

    def begin(self) -> None:
        self.log.append(("begin", -1))

    def done_with(self, place: int) -> None:
        self.log.append(("done", place))

    def bring(self, place: int, parts: Sequence[MicroBatch]) -> DeviceBatch:
        self.threads.add(threading.current_thread())
        size = len(parts[0].images)
        images = self.images[place][: size * len(parts)]
        for number, part in enumerate(parts):
            normalise(part.images, PREPROCESS, images[number * size : (number + 1) * size])
        self.brought += 1
        labels, index = ([getattr(p, key) for p in parts] for key in ("labels", "index"))
        return DeviceBatch(images, joined(labels), joined(index), len(parts))

    def hand_over(self, place: int) -> None:
        self.log.append(("hand over", place))

    def end(self) -> None:
        assert not any(thread.is_alive() for thread in self.threads)
        self.log.append(("end", -1))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("adafilter-data")]


def micro_batches(count: int, closed: list[bool] | None = None) -> Iterator[MicroBatch]:
    try:
        for number in range(count):
            pixels = torch.full((M, SIDE, SIDE, 3), number, dtype=torch.uint8)
            index = torch.arange(number * M, (number + 1) * M)
            yield MicroBatch(pixels.permute(0, 3, 1, 2), index % 7, index)
        raise ValueError("too far")
    finally:
        if closed is not None:
            closed.append(True)


COUNTS = [2, 2, 1] * 4


@pytest.mark.parametrize("carried", [True, False])
def test_forwards_hold_their_micro_batches_in_order(carried: bool) -> None:
    wanted = list(micro_batches_of(sum(COUNTS)))
    found = []
    with forward_batches(
        micro_batches(20), COUNTS, GIVEN, Prefetcher() if carried else None
    ) as forwards:
        for batch in forwards:
            assert batch.images.is_contiguous(memory_format=torch.channels_last) or carried
            found.append(DeviceBatch(batch.images.clone(), batch.labels, batch.index, batch.count))
    assert [batch.count for batch in found] == COUNTS
    first = 0
    for batch in found:
        parts = wanted[first : first + batch.count]
        first += batch.count
        images = torch.cat([to_device(part, PREPROCESS, GIVEN.device)[0] for part in parts])
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.index, torch.cat([part.index for part in parts]))
        assert torch.equal(batch.labels, batch.index % 7)


def micro_batches_of(count: int) -> Iterator[MicroBatch]:
    batches = micro_batches(count + 1)
    for _ in range(count):
        yield next(batches)


def test_a_place_is_filled_again_only_when_its_reader_is_done() -> None:
    prefetcher = Prefetcher()
    with forward_batches(micro_batches(20), COUNTS, GIVEN, prefetcher) as forwards:
        for number, batch in enumerate(forwards):
            # Another thread may be filling the other place by now, never this one.
            assert batch.images[0, 0, 0, 0] == batch.images[M - 1, 0, 0, 0]
            first = batch.images.clone()
            wait_for(prefetcher, min(number + 1 + AHEAD, len(COUNTS)))
            assert prefetcher.brought <= number + 1 + AHEAD
            assert torch.equal(batch.images, first)
    handed = [("hand over", number % 2) for number in range(len(COUNTS))]
    # After forward n is handed over it is read until the next one is asked for.
    wanted: list[tuple[str, int]] = [("begin", -1)]
    for number, entry in enumerate(handed):
        wanted += [("done", (number - 1) % 2)] if 0 < number < len(COUNTS) - 1 else []
        wanted.append(entry)
    assert prefetcher.log == [*wanted, ("end", -1)]
    assert threads() == [] and len(prefetcher.threads) == 1


def wait_for(prefetcher: Prefetcher, brought: int) -> None:
    while prefetcher.brought < brought:
        threading.Event().wait(0.001)


def test_an_error_of_the_loader_arrives_at_its_place() -> None:
    done = []
    with (
        pytest.raises(ValueError, match="too far"),
        forward_batches(micro_batches(5), [1] * 9, GIVEN, Prefetcher()) as forwards,
    ):
        for batch in forwards:
            done.append(int(batch.index[0]) // M)
    assert done == [0, 1, 2, 3, 4]
    assert threads() == []


@pytest.mark.parametrize("carried", [True, False])
def test_a_loader_that_ends_early_is_an_error(carried: bool) -> None:
    few = iter(list(micro_batches_of(3)))
    prefetcher = Prefetcher() if carried else None
    with (
        pytest.raises(RuntimeError, match="ended early: 1 of 2 micro-batches"),
        forward_batches(few, [2, 2], GIVEN, prefetcher) as forwards,
    ):
        list(forwards)


@pytest.mark.parametrize("how", ["break", "raise", "at once", "to the end"])
def test_left_in_any_way_the_thread_has_ended(how: str) -> None:
    prefetcher = Prefetcher()
    closed: list[bool] = []
    batches = micro_batches(20, closed)
    expected = pytest.raises(KeyboardInterrupt) if how == "raise" else nullcontext()
    with expected, forward_batches(batches, COUNTS, GIVEN, prefetcher) as forwards:
        if how == "raise":
            next(forwards)
            raise KeyboardInterrupt
        for number, _ in enumerate(forwards):
            if how == "at once" or (how == "break" and number == 3):
                break
    assert threads() == [] and prefetcher.log[-1] == ("end", -1)
    assert closed == []  # the loader's own context closes it, in this thread
    batches.close()  # type: ignore[attr-defined]
    assert closed == [True]


@pytest.mark.parametrize("first_step", [0, 2])
def test_over_the_real_loaders(kind: str, jpg: Prepared, first_step: int) -> None:
    """A whole epoch and the rest of one, by the thread and without it, are the same pictures."""
    if kind == "ffcv":
        needs_ffcv()
    loader = train_loader(jpg, kind)
    counts = [2, 1] * (loader.steps_per_epoch - first_step)
    passes = []
    for prefetcher in (None, Prefetcher(size=4)):
        with (
            loader.epoch(1, first_step) as batches,
            forward_batches(batches, counts, GIVEN, prefetcher) as forwards,
        ):
            passes.append([(batch.images.clone(), batch.index) for batch in forwards])
    plain, brought = passes
    assert len(plain) == len(brought) == len(counts)
    for one, other in zip(plain, brought, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert threads() == []
