"""Reading through FFCV 1.0.2: everything that deals with its insides is in this file.

FFCV can neither seed its augmentation nor start within an epoch, and some of what goes wrong in it
goes unnoticed. What is different here:

- each batch gets its crop boxes and flips through a buffer, just before it is decoded;
- each pass is given its order, so that it may begin anywhere;
- an error in FFCV's thread reaches the consumer, and the thread is joined on every way out;
- JPEGs are decoded by the exact transform, as Pillow does (FFCV asks libturbojpeg for the fast
  one, some grey levels off), and a damaged one is noticed instead of leaving stale pixels;
- torch's thread count is left alone, and numba's stays within what numba allows;
- batches are copied out of the ring of buffers before they are handed on.

Importing this module imports FFCV (seconds) and fails as FFCV fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from queue import Empty, Full
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numba.core.types import int64, intc, uintp, void
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.loading.backend import Kind, ReadPlan
from adafilter_dist.data.stored.store import Damaged, Store


@contextlib.contextmanager
def _tamed_import() -> Iterator[None]:
    """While FFCV is imported: what it needs, does not need, and would leave changed."""
    threads = torch.get_num_threads()
    replaced = {}
    if importlib.util.find_spec("distutils") is None:
        # Gone since Python 3.12; a name is imported from it and never used.
        log = types.ModuleType("distutils.log")
        log.__dict__["warn"] = None
        replaced = {"distutils": types.ModuleType("distutils"), "distutils.log": log}
    # A table of two entries is a numba dictionary, which takes seconds to compile.
    typed = types.ModuleType("numba.typed")
    typed.__dict__["Dict"] = dict
    replaced["numba.typed"] = typed
    before = {name: sys.modules.get(name) for name in replaced}
    sys.modules.update(replaced)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
        torch.set_num_threads(threads)


with _tamed_import():
    from ffcv import _libffcv
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, epoch_iterator
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler


def _set_numba_threads(cls: type[Compiler], count: int) -> None:
    most = numba.config.NUMBA_NUM_THREADS
    cls.num_threads = min(count, most)
    numba.set_num_threads(cls.num_threads)


# FFCV calls this from several threads at any time; as it was, it set torch's threads too.
Compiler.set_num_threads = classmethod(_set_numba_threads)
# Its streams and events guard buffers that a GPU reads. Ours are copied by the CPU.
epoch_iterator.IS_CUDA = False


def _external(name: str, signature: Any) -> Any:
    """A function of FFCV's library, or of libturbojpeg, with which that is linked.

    Found by a symbol rather than by a ctypes pointer, which numba could not keep in its cache.
    """
    address = ctypes.cast(getattr(_library, name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"adafilter_{name}", address)
    return numba.types.ExternalFunction(f"adafilter_{name}", signature)


_library = ctypes.CDLL(_libffcv.__file__)
_new_decoder = _external("tjInitDecompress", uintp())
_decode_jpeg = _external(
    "tjDecompress2", intc(uintp, uintp, uintp, uintp, intc, intc, intc, intc, intc)
)
_free_decoder = _external("tjDestroy", intc(uintp))
_resize = _external("resize", void(*[int64] * 11))

_READ_AT_ONCE = 128  # pictures in a batch of FFCV's: enough to share among the workers
_AHEAD = 3
# Numba's simplest layer of threads aborts when two passes use it at once; none gains by that.
_one_at_a_time = threading.Lock()
_STATUS = 5  # column of an order, after top, left, height, width, mirrored


class FfcvBackend:
    """Decodes in numba's threads; on a machine's first pass ever, they are compiled (seconds)."""

    kind: Kind = "ffcv"

    def __init__(self, store: Store, size: int, workers: int, micro_batch: int, pin: bool) -> None:
        self._store = store
        self._micro_batch = micro_batch
        self._pin = pin
        # What is worth compiling is compiled already; FFCV would take seconds for the rest.
        Compiler.set_enabled(False)
        try:
            self._loader = Loader(
                str(store.path),
                batch_size=micro_batch * max(1, _READ_AT_ONCE // micro_batch),
                num_workers=workers,
                pipelines={"image": [_BoxDecoder(size)], "label": None},
                batches_ahead=_AHEAD,
            )
        finally:
            Compiler.set_enabled(True)

    def read(self, plan: ReadPlan) -> Generator[Tensor, None, None]:
        """See :class:`~adafilter_dist.data.loading.backend.Backend`."""
        with contextlib.closing(_Pass(self._loader, self._store, plan)) as batches:
            for (batch,) in batches:
                copy = torch.empty(batch.shape, dtype=torch.uint8, pin_memory=self._pin)
                copy.copy_(torch.from_numpy(batch))
                yield from copy.permute(0, 3, 1, 2).split(self._micro_batch)


class _BoxDecoder(SimpleRGBImageDecoder):
    """Has a batch decoded and its boxes scaled, as ordered in a buffer of one row a picture."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        shape, pixel = (self._size, self._size, 3), np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=pixel)
        orders = AllocationQuery((_STATUS + 1,), np.dtype("<i8"))
        return state, (AllocationQuery(shape, pixel), orders)

    def generate_code(self) -> Callable[..., Any]:
        def decode(records: Any, memory: Any, rows: Any, storage: Any) -> Any:
            pictures, orders = memory
            file, offsets, sizes = storage
            with _one_at_a_time:
                _decode(records, rows, np.asarray(file), offsets, sizes, orders, pictures)
            return pictures[: len(records)]

        return decode


# Arrays are passed to these two, not their addresses: numba frees an array after its last use.
@numba.njit(nogil=True)
def _decode_into(picture, encoded):  # type: ignore[no-untyped-def]
    """Decode a JPEG into (H, W, 3); not 0 where it is damaged."""
    height, width = picture.shape[:2]
    decoder = _new_decoder()
    # 0: rows without gaps; 0: RGB; 0: no flag, that is the exact transform
    status = _decode_jpeg(
        *(decoder, encoded.ctypes.data, encoded.size),
        *(picture.ctypes.data, width, 0, height, 0, 0),
    )
    _free_decoder(decoder)
    return status


@numba.njit(nogil=True)
def _scale_into(target, picture, box):  # type: ignore[no-untyped-def]
    """Scale top, left, height, width of a picture to the target (R, R, 3)."""
    _resize(
        *(0, picture.ctypes.data, picture.shape[0], picture.shape[1]),
        *(box[0], box[0] + box[2], box[1], box[1] + box[3]),
        *(target.ctypes.data, target.shape[0], target.shape[1]),
    )


@numba.njit(parallel=True, nogil=True, cache=True)
def _decode(records, rows, file, offsets, sizes, orders, pictures):  # type: ignore[no-untyped-def]
    """Decode records of the file, scale the boxes ordered, and write the status into the orders."""
    side = pictures.shape[1]
    for k in numba.prange(len(records)):
        row = rows[records[k]]
        height, width = int64(row["height"]), int64(row["width"])
        start = row["data_ptr"]
        encoded = file[start : start + sizes[np.searchsorted(offsets, start)]]
        orders[k, 5] = 0
        if row["mode"] == 0:
            # Memory by picture, not by slot of the ring: a ring of the largest size is huge.
            picture = np.empty((height, width, 3), np.uint8)
            orders[k, 5] = _decode_into(picture, encoded)
        else:
            picture = encoded.reshape((height, width, 3))
        target = pictures[k]
        _scale_into(target, picture, orders[k])
        if orders[k, 4]:
            for y in range(side):
                for x in range(side // 2):
                    for c in range(3):
                        pixel = target[y, x, c]
                        target[y, x, c] = target[y, side - 1 - x, c]
                        target[y, side - 1 - x, c] = pixel


class _Pass(epoch_iterator.EpochIterator):
    """One pass over a plan: the thread that decodes ahead, and the iterator over its batches."""

    def __init__(self, loader: Loader, store: Store, plan: ReadPlan) -> None:
        self._store = store
        self._samples = plan.samples.reshape(-1)
        self._boxes = plan.boxes
        self._error: BaseException | None = None
        super().__init__(loader, plan.records.reshape(-1).astype(np.uint64))

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self._error = error
            while not self.terminate_event.is_set():
                with contextlib.suppress(Full):
                    self.output_queue.put(None, timeout=0.1)
                    break

    def run_pipeline(self, b_ix: int, batch_indices: Any, batch_slot: int, cuda_event: Any) -> Any:
        count = len(batch_indices)
        first = b_ix * self.loader.batch_size
        (memory,) = self.memory_allocations["operation"].values()
        orders: NDArray[np.int64] = memory[1][batch_slot][:count]
        orders[:, :_STATUS] = self._boxes(self._samples[first : first + count])
        result = super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)
        bad = batch_indices[orders[:, _STATUS] != 0]
        if len(bad):
            raise Damaged(self._store.path, f"record {bad[0]} cannot be decoded")
        return result

    def __next__(self) -> Any:
        result = self.output_queue.get()
        if result is not None:
            return result[1]
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """End the thread, whatever it is doing, and wait for it."""
        self.terminate_event.set()
        while self.is_alive():
            # It may be waiting for room in the queue.
            with contextlib.suppress(Empty):
                self.output_queue.get(timeout=0.01)
        super().close()
