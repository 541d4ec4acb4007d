"""Lock files: only one process at a time prepares a folder or copies data to a node."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def exclusive(
    path: Path, on_wait: Callable[[], None], while_waiting: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Hold a lock file; the kernel frees it when the holder dies, however it dies.

    ``on_wait`` is called once if somebody else holds it, ``while_waiting`` several times a second
    from then on. Yields False, and locks nothing, on a file system without locks. The file is
    removed at the end.
    """
    descriptor = _locked(path, on_wait, while_waiting)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(
    path: Path, on_wait: Callable[[], None], while_waiting: Callable[[], None] | None
) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            _wait(descriptor, while_waiting)
        except OSError:  # some cluster file systems are mounted without locks
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        # The holder we waited for removed this very file: lock the one that is there now.
        os.close(descriptor)


def _wait(descriptor: int, while_waiting: Callable[[], None] | None) -> None:
    if while_waiting is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    try:
        while True:
            while_waiting()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
    except BaseException:
        os.close(descriptor)
        raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
