"""Reading in threads of compiled code: the parts of JPEGs that crops need, or stored pixels.

For `_AT_ONCE` pictures at a time a thread runs code that numba compiled, and does not hold Python's
lock: the training loop need not wait for it. It has the kernel fetch all of them from the disk
before it decodes the first. Pixels are those of FFCV to the bit: the same exact decoding, the same
resizing.

Importing this module imports numba; on a machine's first pass ever its code is compiled (seconds).
LibraryMissing where Pillow's libjpeg cannot be used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.area_resize import resize_box
from adafilter_dist.data.loading.backend import Kind, ReadPlan
from adafilter_dist.data.loading.compiling import compiled
from adafilter_dist.data.loading.libjpeg import (
    LIBRARY,
    close_decoder,
    decode_box,
    open_decoder,
)
from adafilter_dist.data.loading.read_ahead import PAGE_SIZE, read_ahead
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.data.stored.store import Damaged, Store

_AT_ONCE = 32  # pictures that a thread takes at a time
# For how many boxes are drawn at a time: Python's lock is held for that, and for a few pictures it
# takes as long as for a hundred.
_DRAWN_AT_ONCE = 512


class _Part(NamedTuple):
    """Pictures that one thread fills in: boxes of ``records``, into ``pixels``.

    ``images`` are the whole micro-batches of which these are the last pictures, None before.
    """

    records: NDArray[np.int64]
    boxes: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    images: Tensor | None


class NumbaBackend:
    """Decodes and scales in threads without Python's lock."""

    kind: Kind = "numba"

    def __init__(self, store: Store, size: int, workers: int, pin: bool) -> None:
        store.read_at_random()
        self._store = store
        self._size = size
        self._workers = workers
        self._pin = pin

    def read(self, plan: ReadPlan) -> Generator[Tensor, None, None]:
        """See :class:`~adafilter_dist.data.loading.backend.Backend`."""
        micro_batch = plan.samples.shape[1]

        def decode(part: _Part) -> Tensor | None:
            self._decode(part.records, part.boxes, part.pixels)
            return part.images

        ahead = max(2 * self._workers, 2 * micro_batch // _AT_ONCE)
        with WorkerPool(self._workers) as pool:
            for images in pool.map(decode, self._parts(plan), ahead):
                if images is not None:
                    yield from images.permute(0, 3, 1, 2).split(micro_batch)

    def _parts(self, plan: ReadPlan) -> Iterator[_Part]:
        """Memory for whole micro-batches, a few at a time, and its parts."""
        samples, records = plan.samples.reshape(-1), plan.records.reshape(-1)
        micro_batch = plan.samples.shape[1]
        together = micro_batch * max(1, _AT_ONCE // micro_batch)
        drawn = together * max(1, _DRAWN_AT_ONCE // together)
        for start in range(0, len(samples), together):
            length = min(together, len(samples) - start)
            if start % drawn == 0:
                boxes = plan.boxes(samples[start : start + drawn])
            shape = (length, self._size, self._size, 3)
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
            pixels = images.numpy()
            for first in range(0, length, _AT_ONCE):
                some = slice(first, min(first + _AT_ONCE, length))
                at = start + first
                count = some.stop - some.start
                yield _Part(
                    records[at : at + count],
                    boxes[at % drawn : at % drawn + count],
                    pixels[some],
                    images if some.stop == length else None,
                )

    def _decode(
        self, records: NDArray[np.int64], boxes: NDArray[np.int64], pixels: NDArray[np.uint8]
    ) -> None:
        content, index = self._store.content, self._store.index[records]
        read_ahead(content, index, PAGE_SIZE)
        bad = _fill(LIBRARY, content, index, boxes, pixels)
        if bad >= 0:
            self._store.read(int(records[bad]))  # knows what is wrong with it
            raise Damaged(self._store.path, f"record {records[bad]} cannot be decoded")


@compiled
def _fill(library, content, index, boxes, pixels):  # type: ignore[no-untyped-def]
    """Fill pixels (n, R, R, 3) with boxes (n, 5) of records; the first damaged one, or -1.

    ``index`` (n, 5) is where they lie in the file's ``content``, see `Store.index`.
    """
    most = 1
    for k in range(len(index)):
        if index[k, 4] == 0:
            most = max(most, index[k, 2] * index[k, 3])
    decoded = np.empty(3 * most, np.uint8)
    decoder = open_decoder(library)
    bad = -1
    for k in range(len(index)):
        offset, size, height, width, raw = index[k]
        box = boxes[k]
        if raw:
            start = offset + 3 * (box[0] * width + box[1])
            resize_box(content, start, 3 * width, box[2], box[3], pixels[k], box[4] != 0)
            continue
        encoded = content[offset : offset + size]
        column, length = decode_box(library, decoder, encoded, height, width, box, decoded)
        if column < 0 or encoded[size - 2] != 0xFF or encoded[size - 1] != 0xD9:
            bad = k
            break
        start, stride = 3 * column, 3 * length
        resize_box(decoded, start, stride, box[2], box[3], pixels[k], box[4] != 0)
    close_decoder(library, decoder)
    return bad
