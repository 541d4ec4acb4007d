"""Commands whose output is read as it comes, and ranks that are started by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.distributed.launch import (
    Ended,
    Process,
    free_port,
    kill_tree,
    rank_environment,
    start,
)


class LoaderWithCallback:
    """A started command whose lines are read as they come."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Return once a line with ``text`` was printed; AssertionError at the end or time-out."""
        until = time.monotonic() + timeout
        with self._news:
            while not any(text in line for line in self._lines):
                left = until - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no {text!r} in: {''.join(self._lines)}")
                self._news.wait(left)

    def end(self, timeout: float = 240) -> Ended:
        code = self.process.wait(timeout)
        self._thread.join(30)
        return Ended(code, self.output)


@contextmanager
def watched(process: Process) -> Iterator[LoaderWithCallback]:
    """A started command, killed with its descendants at the end."""
    try:
        yield LoaderWithCallback(process)
    finally:
        kill_tree(process.pid)
        process.wait(30)


@contextmanager
def ranks(
    words: Sequence[str], world_size: int, folder: Path
) -> Iterator[list[LoaderWithCallback]]:
    """``adafilter WORDS`` once a rank, without torchrun: nobody but us looks after them."""
    port = free_port()
    with ExitStack() as stack:
        started = []
        for rank in range(world_size):
            place = rank_environment(rank, world_size, port)
            process = start(words, folder=folder, environment=place)
            started.append(stack.enter_context(watched(process)))
        yield started
