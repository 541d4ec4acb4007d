"""What a rank leaves when it dies: its last words, and in status.json that the run failed."""

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
from adafilter_dist.system.files import write_json

_LINES = 15
_WIDTH = 1000  # characters of a line


@contextlib.contextmanager
def failures_noted(run: RunFolder, world: World, attempt: int) -> Iterator[None]:
    """Note whatever ends the attempt: each rank its own exception, rank 0 the end of the run."""
    try:
        yield
    except BaseException as error:
        # Nothing here may hide the error itself, not even a disk that is full.
        with contextlib.suppress(Exception):
            if _is_its_own(error):
                _leave_note(run, world, attempt, error)
        with contextlib.suppress(Exception):
            if world.first:
                line = str(error).splitlines()[0] if str(error) else ""
                run.end("failed", reason=f"{type(error).__name__}: {line}")
        raise


def _is_its_own(error: BaseException) -> bool:
    """Whether it began on this rank, as far as that can be known: not another's end, not Ctrl-C."""
    return isinstance(error, Exception) and not isinstance(error, (RankError, LostRunError))


def _leave_note(run: RunFolder, world: World, attempt: int, error: BaseException) -> None:
    if isinstance(error, UserError):
        said = str(error)
    else:
        said = "".join(traceback.format_exception(error))
    lines = [line[:_WIDTH] for line in said.splitlines() if line.strip()]
    note = {
        "rank": world.rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "error": lines[-_LINES:],
    }
    write_json(run.path / "attempts" / str(attempt) / f"failed.{world.rank}.json", note)
