"""Reading on a GPU: nvJPEG decodes whole JPEGs there, through TorchCodec, and torch scales boxes.

nvJPEG's pixels are not those of libjpeg, and may differ between kinds of GPU. On a CPU the same
code has TorchCodec's libjpeg decode, whose pixels are those of the compiled loader to the bit: so
tests show all but nvJPEG itself.

Importing this module imports TorchCodec and numba.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator, Iterator
from queue import SimpleQueue

import torch
from numpy import int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchcodec.decoders import decode_jpeg

from adafilter_dist.data.loading.backend import Kind, ReadPlan
from adafilter_dist.data.loading.device_resize import resize_boxes
from adafilter_dist.data.loading.read_ahead import PAGE_SIZE, read_ahead
from adafilter_dist.data.stored.pool import WorkerPool
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError

_MOST_THREADS = 4  # each has a decoder and memory on the GPU; the GPU's own decoder takes a batch
_AT_ONCE = 32  # pictures that are scaled together: memory is that of their boxes as floats


class NvjpegBackend:
    """Decodes micro-batches on the device, a few ahead; they are handed out there, complete.

    RuntimeError where TorchCodec cannot decode on the device.
    """

    kind: Kind = "nvjpeg"

    def __init__(self, store: Store, size: int, workers: int, device: torch.device) -> None:
        store.read_at_random()
        self._store = store
        self._size = size
        self._threads = min(workers, _MOST_THREADS)
        self._device = device
        # A stream for each thread: on the default one, decoding would wait for training.
        self._streams: SimpleQueue[torch.cuda.Stream | None] = SimpleQueue()
        for _ in range(self._threads):
            self._streams.put(torch.cuda.Stream(device) if device.type == "cuda" else None)
        decode_jpeg([_smallest()], device=device)

    def read(self, plan: ReadPlan) -> Generator[Tensor, None, None]:
        """See :class:`~adafilter_dist.data.loading.backend.Backend`; images are on the device."""

        def micro_batch(number: int) -> Tensor:
            boxes = plan.boxes(plan.samples[number])
            with self._stream():
                return self._micro_batch(plan.records[number], boxes)

        with WorkerPool(self._threads) as pool:
            yield from pool.map(micro_batch, range(len(plan.records)), ahead=self._threads)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        """Inside, a stream that no other thread has; what it was given is done at the end."""
        stream = self._streams.get()
        try:
            if stream is None:
                yield
                return
            # Per thread: leaving the stream would else make GPU 0 this thread's device.
            torch.cuda.set_device(self._device)
            with torch.cuda.stream(stream):
                yield
                stream.synchronize()
        finally:
            self._streams.put(stream)

    def _micro_batch(self, records: NDArray[int64], boxes: NDArray[int64]) -> Tensor:
        pictures = self._decoded(records.tolist())
        shape = (len(records), self._size, self._size, 3)
        images = torch.empty(shape, dtype=torch.uint8, device=self._device).permute(0, 3, 1, 2)
        for first in range(0, len(records), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            resize_boxes(pictures[some], boxes[some], images[some])
        return images

    def _decoded(self, records: list[int]) -> list[Tensor]:
        """Whole pictures, uint8 (3, H, W) on the device; UserError names a damaged record."""
        encoded = []
        read_ahead(self._store.content, self._store.index[records], PAGE_SIZE)
        for record in records:
            # A copy: torch has no tensors that must not be written to.
            encoded.append(torch.from_numpy(self._store.encoded(record).copy()))
            if encoded[-1][-2:].tolist() != [0xFF, 0xD9]:
                self._store.read(record)  # says what is wrong with it
        try:
            pictures = list(decode_jpeg(encoded, device=self._device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # Of a batch it does not say which.
            for record, one in zip(records, encoded, strict=True):
                self._require_decodes(record, one)
            raise
        for record, picture in zip(records, pictures, strict=True):
            sides = self._store.heights[record], self._store.widths[record]
            if picture.shape != (3, *sides):
                self._store.read(record)  # as above
        return pictures

    def _require_decodes(self, record: int, encoded: Tensor) -> None:
        try:
            decode_jpeg([encoded], device=self._device)
        except RuntimeError as error:
            self._store.read(record)
            raise UserError(
                f"{self._store.path}: record {record} is whole, but cannot be decoded on "
                f"{self._device} ({str(error).splitlines()[0]}); use data.loader=numba, whose "
                "pixels are others"
            ) from error


def _smallest() -> bytes:
    """A JPEG that any decoder takes."""
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, "JPEG")
    return encoded.getvalue()
