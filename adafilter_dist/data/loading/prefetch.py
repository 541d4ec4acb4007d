"""Micro-batches for a forward, brought to the device while the one before is computed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Protocol

import torch

from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.device import Input, joined, normalise
from adafilter_dist.data.stored.pool import WorkerPool

AHEAD = 1
"""Forwards that are brought beyond the one in use; the loader decodes further ahead."""


class Carrier(Protocol):
    """Brings to the device. All but `bring` run in the thread of whoever trains."""

    def begin(self) -> None:
        """A pass over batches begins."""

    def done_with(self, place: int) -> None:
        """The batch in this place (0 to AHEAD) is no longer read: its work is queued."""

    def bring(self, place: int, parts: Sequence[MicroBatch]) -> DeviceBatch:
        """Start to fill the place, from a thread of its own."""
        ...

    def hand_over(self, place: int) -> None:
        """What is queued from now on may read the place."""

    def end(self) -> None:
        """The pass is over, early perhaps; nothing is being brought."""


@contextmanager
def in_forwards(
    batches: Iterator[MicroBatch], counts: Sequence[int], given: Input, carrier: Carrier | None
) -> Iterator[Iterator[DeviceBatch]]:
    """The micro-batches, as many for each forward as ``counts`` says, on the device.

    Without a carrier (on the CPU) each is normalised when it is asked for. With one a thread brings
    them, at most `AHEAD` forwards beyond the one in use; what the loader raises is raised here, at
    its place, and however the context is left, the thread has ended afterwards.
    """
    if carrier is None:
        yield (given.bring(_take(batches, count)) for count in counts)
        return
    carrier.begin()
    try:
        with WorkerPool(1) as pool, closing(_ahead(pool, batches, counts, carrier)) as ahead:
            yield ahead
    finally:
        carrier.end()


def _ahead(
    pool: WorkerPool, batches: Iterator[MicroBatch], counts: Sequence[int], carrier: Carrier
) -> Generator[DeviceBatch, None, None]:
    places = AHEAD + 1

    def numbers() -> Iterator[int]:
        for number in range(len(counts)):
            # Asked for when the consumer is back for the next one, so done with the one before.
            if number >= places:
                carrier.done_with(number % places)
            yield number

    def bring(number: int) -> DeviceBatch:
        return carrier.bring(number % places, _take(batches, counts[number]))

    for number, batch in enumerate(pool.map(bring, numbers(), ahead=AHEAD)):
        carrier.hand_over(number % places)
        yield batch


def _take(batches: Iterator[MicroBatch], count: int) -> list[MicroBatch]:
    parts = list(islice(batches, count))
    if len(parts) < count:
        raise RuntimeError(f"the loader ended early: {len(parts)} of {count} micro-batches")
    return parts


class CudaCarrier:
    """A stream beside the one that computes, and room for `AHEAD` + 1 forwards of ``samples``.

    Bytes travel from pinned memory and are normalised on the device. The room is used in turn, so
    that memory is bounded however far the host runs ahead of the device: the stream waits for
    whoever read a place last. Nothing waits on the host.
    """

    def __init__(self, given: Input, samples: int) -> None:
        side, device = given.preprocess.crop, given.device
        layout = torch.channels_last if given.channels_last else torch.contiguous_format
        self._preprocess = given.preprocess
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._images = [
            torch.empty(
                (samples, 3, side, side), dtype=given.dtype, device=device, memory_format=layout
            )
            for _ in range(AHEAD + 1)
        ]
        self._labels = [
            torch.empty(samples, dtype=torch.int64, device=device) for _ in range(AHEAD + 1)
        ]
        self._read = [torch.cuda.Event() for _ in range(AHEAD + 1)]
        self._filled = [torch.cuda.Event() for _ in range(AHEAD + 1)]

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def done_with(self, place: int) -> None:
        self._read[place].record(torch.cuda.current_stream(self._device))

    def bring(self, place: int, parts: Sequence[MicroBatch]) -> DeviceBatch:
        with torch.cuda.stream(self._stream):
            pixels = [part.images.to(self._device, non_blocking=True) for part in parts]
            self._stream.wait_event(self._read[place])
            size = len(pixels[0])
            images = self._images[place][: size * len(parts)]
            labels = self._labels[place][: size * len(parts)]
            for number, part in enumerate(parts):
                slot = slice(number * size, (number + 1) * size)
                normalise(pixels[number], self._preprocess, images[slot])
                labels[slot].copy_(part.labels, non_blocking=True)
            self._filled[place].record(self._stream)
        index = joined([part.index for part in parts])
        return DeviceBatch(images, labels, index, len(parts))

    def hand_over(self, place: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._filled[place])

    def end(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
