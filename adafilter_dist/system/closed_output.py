"""Handles output to a pipe whose reader has ended, as in ``adafilter status | head -1``."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO

BROKEN_PIPE = 141
"""The exit code of a program that a broken pipe ends, as a shell gives it: 128 + SIGPIPE."""


def is_unread(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    try:
        asked = select.poll()
        asked.register(stream.fileno() if stream is not None else -1, 0)
        return any(state & select.POLLERR for _, state in asked.poll(0))
    except (OSError, ValueError):  # closed, or no file
        return False


def drop_unread() -> bool:
    """Send nowhere what stdout and stderr hold for a closed pipe; whether there is such a pipe."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if is_unread(stream)]
    for stream in streams:
        discard(stream)
    return bool(streams)


def discard(stream: TextIO) -> None:
    """Send nowhere what a stream still holds, and all that follows."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
