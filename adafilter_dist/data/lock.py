"""One `prepare` at a time per folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock file; the kernel frees it when the holder dies, however it dies.

    ``on_wait`` is called once if somebody else holds it. Yields False, and locks nothing, on a file
    system without locks. The file is removed at the end.
    """
    descriptor = _locked(path, on_wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(path: Path, on_wait: Callable[[], None]) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some cluster file systems are mounted without locks
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        # The holder we waited for removed this very file: lock the one that is there now.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
