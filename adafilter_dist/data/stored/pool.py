"""Worker threads that decode: ordered results, bounded reading ahead, errors passed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class WorkerPool:
    """Threads that decode; use it as a context manager.

    Leaving the context drops what has not begun and joins the threads, however it is left. What
    runs in them should not be a torch operation with threads of its own: each worker would open a
    team as large as the machine.
    """

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, "adafilter-data")

    def map(self, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
        """Results in order, at most ``ahead`` items begun beyond the one asked for.

        What ``work`` or ``items`` raises is raised here, at its place in the order.
        """
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(self._threads.submit(work, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Drop what has not begun and join the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
