"""Ends a process that hangs inside a library call, with a line that says why."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
