"""A loader in a process of its own, so that its CPU time and memory are its own."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.disk import SlowDisk, drop_from_page_cache, has_mapped, unmap
from bench.process_tree import Peak, cpu_seconds, processes, read_bytes, watched

_LONGEST = 300  # seconds that an answer may take: FFCV compiles for half a minute
_MOST_OF_A_FORGETTING = 5  # seconds


@dataclass(frozen=True)
class Passed:
    """An epoch: pictures, seconds, those until the first batch; of all processes CPU seconds, bytes
    read from disk."""

    pictures: int
    seconds: float
    first: float
    cpu: float
    read: int


@dataclass(frozen=True)
class Memory:
    """The most memory during an epoch, in bytes; of all processes, of the first alone."""

    total: int
    root: int
    processes: int


@dataclass(frozen=True)
class Started:
    """From the loader's making to an epoch's first batch; its memory until a few batches later."""

    build: float  # seconds
    first: float  # seconds, from an epoch's begin
    cpu: float  # seconds, of both
    read: int  # bytes from disk, of both
    memory: Memory


class LoaderProcess:
    """The process of one loader of `bench.loaders.LOADERS`; a context.

    ``folder`` is where all pictures are that it will read.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, folder))
        self._process.start()
        theirs.close()

    def ask(self, what: str, *of: Any) -> Any:
        """Have a method of `_Server` called; RuntimeError with its traceback if it fails."""
        try:
            self._pipe.send((what, of))
            if not self._pipe.poll(_LONGEST):
                raise RuntimeError(f"no answer in {_LONGEST} s")
            right, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._process.join(10)
            raise RuntimeError(f"the process ended: {self._process.exitcode}") from None
        if not right:
            raise RuntimeError(answer)
        return answer

    def slowed(self, disk: SlowDisk) -> contextlib.AbstractContextManager[None]:
        """While the context lasts, this process and its workers read slowly."""
        return disk.holding(processes(self._process.pid))

    def let_go(self) -> None:
        """Have the processes that mapped files of the pictures unmap them, each in its time."""
        for pid in processes(self._process.pid):
            if has_mapped(pid, self._folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)

    def __enter__(self) -> LoaderProcess:
        return self

    def __exit__(self, *of: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def forget(loaders: Iterable[LoaderProcess], paths: Sequence[Path]) -> float:
    """Empty the page cache of files that the loaders read; the share of their bytes that stays."""
    until = time.monotonic() + _MOST_OF_A_FORGETTING
    while True:
        for loader in loaders:
            loader.let_go()
        share = drop_from_page_cache(paths)
        if not share or time.monotonic() > until:
            return share
        time.sleep(0.05)


class _Server:
    """What the process can be asked."""

    def __init__(self, name: str) -> None:
        from bench.loaders import LOADERS

        (self._loader,) = (loader for loader in LOADERS if loader.name == name)
        self._epochs: Any = None
        self._number = 0
        self._cpu = 0.0  # seconds, at the end of the last epoch

    def build(self, work: Any) -> None:
        """Make the loader, instead of the one before."""
        self._epochs = None
        gc.collect()
        self._epochs = self._loader.build(work)
        self._cpu = cpu_seconds()

    def epoch(self) -> Passed:
        """Run through the next epoch."""
        self._number += 1
        # DALI begins the next epoch as soon as one ends: that time counts, too.
        before, read, began = self._cpu, read_bytes(), time.perf_counter()
        pictures, first = 0, 0.0
        for images, _ in self._epochs(self._number):
            first = first or time.perf_counter() - began
            pictures += len(images)
        seconds = time.perf_counter() - began
        self._cpu = cpu_seconds()
        return Passed(pictures, seconds, first, self._cpu - before, read_bytes() - read)

    def start(self, work: Any, batches: int) -> Started:
        """Make the loader and run through an epoch's first batches."""
        before, read, began = cpu_seconds(), read_bytes(), time.perf_counter()
        with watched() as peak:
            self.build(work)
            built = time.perf_counter()
            stream = iter(self._epochs(1))
            next(stream)
            first = time.perf_counter()
            cpu, read = cpu_seconds() - before, read_bytes() - read
            for _ in range(batches - 1):
                next(stream)
        memory = _memory(peak)
        return Started(built - began, first - built, cpu, read, memory)

    def memory(self) -> Memory:
        """Run through an epoch and watch the memory."""
        with watched() as peak:
            self.epoch()
        return _memory(peak)

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


def _memory(peak: Peak) -> Memory:
    return Memory(peak.total, peak.root, peak.processes)


def _serve(pipe: Connection, name: str, folder: Path) -> None:
    warnings.filterwarnings("ignore")
    # This process was spawned, and its children would be: theirs is what a user's would be.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    # Workers that are forked have it too.
    signal.signal(signal.SIGUSR1, lambda *of: unmap(folder))
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
