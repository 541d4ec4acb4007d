"""Brings the next forward's micro-batches to the device while the current one is computed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Protocol

import torch

from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer, joined, normalise, on_device
from adafilter_dist.data.stored.pool import WorkerPool

AHEAD = 1
"""Forwards that are brought beyond the one in use; the loader decodes further ahead."""


class Prefetcher(Protocol):
    """Fills places on the device with batches. All methods but `bring` run in the main thread."""

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
def forward_batches(
    batches: Iterator[MicroBatch],
    counts: Sequence[int],
    transfer: BatchTransfer,
    prefetcher: Prefetcher | None,
) -> Iterator[Iterator[DeviceBatch]]:
    """Batches on the device, one for each forward, of as many micro-batches as ``counts`` says.

    Without a prefetcher (on the CPU) a batch is normalised when it is asked for. With one, a thread
    brings batches, at most `AHEAD` forwards before they are used. An exception of the loader is
    raised here, in place of its batch. The thread has ended when the context is left.
    """
    if prefetcher is None:
        yield (transfer.bring(_take(batches, count)) for count in counts)
        return
    prefetcher.begin()
    try:
        with WorkerPool(1) as pool, closing(_ahead(pool, batches, counts, prefetcher)) as ahead:
            yield ahead
    finally:
        prefetcher.end()


def _ahead(
    pool: WorkerPool, batches: Iterator[MicroBatch], counts: Sequence[int], prefetcher: Prefetcher
) -> Generator[DeviceBatch, None, None]:
    places = AHEAD + 1

    def numbers() -> Iterator[int]:
        for number in range(len(counts)):
            # Asked for when the consumer is back for the next one, so done with the one before.
            if number >= places:
                prefetcher.done_with(number % places)
            yield number

    def bring(number: int) -> DeviceBatch:
        return prefetcher.bring(number % places, _take(batches, counts[number]))

    for number, batch in enumerate(pool.map(bring, numbers(), ahead=AHEAD)):
        prefetcher.hand_over(number % places)
        yield batch


def _take(batches: Iterator[MicroBatch], count: int) -> list[MicroBatch]:
    parts = list(islice(batches, count))
    if len(parts) < count:
        raise RuntimeError(f"the loader ended early: {len(parts)} of {count} micro-batches")
    return parts


class CudaPrefetcher:
    """A copy stream, and buffers for `AHEAD` + 1 forwards of at most ``samples`` images.

    Bytes are copied from pinned memory and normalised on the device. The buffers are reused in
    turn, so that memory is bounded however far the host runs ahead of the device: before the copy
    stream fills a buffer, it waits for the forward that read it last. The host never waits.
    """

    def __init__(self, transfer: BatchTransfer, samples: int) -> None:
        side, device = transfer.preprocess.crop, transfer.device
        layout = torch.channels_last if transfer.channels_last else torch.contiguous_format
        self._preprocess = transfer.preprocess
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._images = [
            torch.empty(
                (samples, 3, side, side), dtype=transfer.dtype, device=device, memory_format=layout
            )
            for _ in range(AHEAD + 1)
        ]
        self._labels = [
            torch.empty(samples, dtype=torch.int64, device=device) for _ in range(AHEAD + 1)
        ]
        self._domains = [torch.empty_like(labels) for labels in self._labels]
        self._read = [torch.cuda.Event() for _ in range(AHEAD + 1)]
        self._filled = [torch.cuda.Event() for _ in range(AHEAD + 1)]

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def done_with(self, place: int) -> None:
        self._read[place].record(torch.cuda.current_stream(self._device))

    def bring(self, place: int, parts: Sequence[MicroBatch]) -> DeviceBatch:
        # Per thread: leaving the stream would else make GPU 0 this thread's device, and open a
        # context on it for every rank.
        torch.cuda.set_device(self._device)
        with torch.cuda.stream(self._stream):
            pixels = [on_device(part.images, self._device) for part in parts]
            self._stream.wait_event(self._read[place])
            size = len(pixels[0])
            images = self._images[place][: size * len(parts)]
            labels = self._labels[place][: size * len(parts)]
            domain = self._domains[place][: size * len(parts)]
            for number, part in enumerate(parts):
                slot = slice(number * size, (number + 1) * size)
                normalise(pixels[number], self._preprocess, images[slot])
                labels[slot].copy_(part.labels, non_blocking=True)
                if part.domain is not None:
                    domain[slot].copy_(part.domain, non_blocking=True)
            self._filled[place].record(self._stream)
        index = joined([part.index for part in parts])
        known = None if parts[0].domain is None else domain
        return DeviceBatch(images, labels, index, len(parts), known)

    def hand_over(self, place: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._filled[place])

    def end(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
