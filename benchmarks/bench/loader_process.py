"""A loader in a process of its own, so that its CPU time and memory are its own."""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.process_tree import cpu_seconds, processes, watched

_DONTNEED = 4  # of madvise


@dataclass(frozen=True)
class Passed:
    """An epoch: pictures, seconds, those until the first batch, CPU seconds of all processes."""

    pictures: int
    seconds: float
    first: float
    cpu: float


@dataclass(frozen=True)
class Memory:
    """The most memory during an epoch, in bytes; of all processes, of the first alone."""

    total: int
    root: int
    processes: int


class LoaderProcess:
    """The process of one loader of `bench.loaders.LOADERS`; a context."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name))
        self._process.start()
        theirs.close()

    def ask(self, what: str, *of: Any) -> Any:
        """Have a method of `_Server` called; RuntimeError with its traceback if it fails."""
        self._pipe.send((what, of))
        try:
            right, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process ended: {self._process.exitcode}") from None
        if not right:
            raise RuntimeError(answer)
        return answer

    def __enter__(self) -> LoaderProcess:
        return self

    def __exit__(self, *of: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def drop_from_page_cache(paths: Iterable[Path]) -> float:
    """Have the kernel forget the files; the share of their bytes that it kept all the same."""
    kept = total = 0
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            if size:
                kept += _resident(file.fileno(), size)
                total += -(-size // mmap.PAGESIZE)
    return kept / max(total, 1)


def _resident(descriptor: int, size: int) -> int:
    """How many pages of a file are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        if libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), pages):
            raise OSError(ctypes.get_errno(), "mincore")
        del first
    return sum(page & 1 for page in pages)


class _Server:
    """What the process can be asked."""

    def __init__(self, name: str) -> None:
        from bench.loaders import LOADERS

        (self._loader,) = (loader for loader in LOADERS if loader.name == name)
        self._epochs: Any = None
        self._number = 0

    def build(self, work: Any) -> None:
        """Make the loader, instead of the one before."""
        self._epochs = None
        gc.collect()
        self._epochs = self._loader.build(work)

    def unmap(self, paths: Iterable[Path]) -> None:
        """Let go of the pages of files that are mapped: the kernel does not drop them else."""
        names = {str(path) for path in paths}
        libc = ctypes.CDLL(None, use_errno=True)
        for line in Path("/proc/self/maps").read_text().splitlines():
            of = line.split(maxsplit=5)
            if of[-1] in names:  # nobody writes to these pages: they are read again
                begin, end = (int(part, 16) for part in of[0].split("-"))
                if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED):
                    raise OSError(ctypes.get_errno(), "madvise")

    def epoch(self) -> Passed:
        """Run through the next epoch."""
        self._number += 1
        before, began = cpu_seconds(), time.perf_counter()
        pictures, first = 0, 0.0
        for images, _ in self._epochs(self._number):
            first = first or time.perf_counter() - began
            pictures += len(images)
        seconds = time.perf_counter() - began
        return Passed(pictures, seconds, first, cpu_seconds() - before)

    def memory(self) -> Memory:
        """Run through an epoch and watch the memory."""
        with watched() as peak:
            self.epoch()
        return Memory(peak.total, peak.root, peak.processes)

    def differences(self, work: Any) -> tuple[int, float]:
        """Most and mean difference in grey levels from Pillow, where crops are whole pictures."""
        import numpy as np
        from PIL import Image

        from bench.loaders import files_of

        files, differences = files_of(work.pictures), []
        self.build(work)
        for images, labels in self._epochs(0):
            pixels = images.permute(0, 2, 3, 1).numpy().astype(int)
            for each, label in zip(pixels, labels.tolist(), strict=True):
                with Image.open(files[label]) as opened:
                    scaled = opened.resize((work.size, work.size), Image.Resampling.BILINEAR)
                differences.append(np.abs(each - np.asarray(scaled)))
        return int(np.max(differences)), float(np.mean(differences))


def _serve(pipe: Connection, name: str) -> None:
    warnings.filterwarnings("ignore")
    # This process was spawned, and its children would be: theirs is what a user's would be.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    server: _Server | None = None
    while True:
        try:
            what, of = pipe.recv()
        except EOFError:
            break
        try:
            server = server or _Server(name)
            pipe.send((True, getattr(server, what)(*of)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    # Some loaders leave workers that nobody ends.
    for pid in processes():
        if pid != os.getpid():
            os.kill(pid, signal.SIGKILL)
    os._exit(0)
