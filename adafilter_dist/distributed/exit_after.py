"""Calls that may hang in a library or a file system: they are given up, or end the process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def ended_unless_done(within: float, line: str) -> Iterator[None]:
    """End the process with ``line`` and exit code 1 if the block takes longer than ``within`` s.

    Only for where nothing is lost by that: before a run is claimed.
    """

    def end() -> None:
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(1)  # no exception reaches a thread that waits in C++

    timer = threading.Timer(within, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def within(longest: float, work: Callable[[], object]) -> object:
    """What ``work`` returns; None if it raises, or takes ``longest`` seconds and is left alone."""
    box: list[object] = []

    def run() -> None:
        with suppress(Exception):
            box.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(longest)
    return box[0] if box else None
