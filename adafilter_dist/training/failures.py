"""Records an attempt's end by an exception: each rank its traceback, rank 0 the run's state."""

from __future__ import annotations

import contextlib
import socket
import time
import traceback
from collections.abc import Iterator

from adafilter_dist.distributed import World
from adafilter_dist.distributed.lost_peer import RankError
from adafilter_dist.errors import UserError
from adafilter_dist.run.folder import RunFolder
from adafilter_dist.run.ownership import LostRunError

_LINES = 15
_WIDTH = 1000  # characters of a line


@contextlib.contextmanager
def failures_recorded(run: RunFolder, world: World, attempt: int) -> Iterator[None]:
    """Record the exception that ends the attempt: each rank its own, rank 0 also the run's end."""
    try:
        yield
    except BaseException as error:
        # Nothing here may hide the error itself, not even a disk that is full.
        with contextlib.suppress(Exception):
            if _is_its_own(error):
                _write_failure(run, world, attempt, error)
        with contextlib.suppress(Exception):
            if world.is_rank0:
                line = str(error).splitlines()[0] if str(error) else ""
                run.end("failed", reason=f"{type(error).__name__}: {line}")
        raise


def _is_its_own(error: BaseException) -> bool:
    """Whether the error began on this rank: not with another rank's end, not with Ctrl-C."""
    return isinstance(error, Exception) and not isinstance(error, (RankError, LostRunError))


def _write_failure(run: RunFolder, world: World, attempt: int, error: BaseException) -> None:
    if isinstance(error, UserError):
        message = str(error)
    else:
        message = "".join(traceback.format_exception(error))
    lines = [line[:_WIDTH] for line in message.splitlines() if line.strip()]
    note = {
        "rank": world.rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "error": lines[-_LINES:],
    }
    run.files.attempt(attempt).write_failure(world.rank, note)
