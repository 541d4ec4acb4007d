"""The output of a rank: where it is, its last lines, and what is added to it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.submission import read_submitted

_BLOCK = 65536


def log_of(run: Path, rank: int) -> Path:
    """The file that a rank's output goes to; UserError naming the ranks where there is none."""
    problems: list[str] = []
    log, submitted = RunFiles(run).log, read_submitted(run, problems)
    if problems:
        raise UserError(f"{run}: {problems[0]}; what rank 0 said is in {log}")
    if submitted is None:
        if rank == 0:
            return log
        raise UserError(
            f"{run} was started by hand, so only what rank 0 said is kept ({log}); "
            f"the output of rank {rank} went where its launcher put it: a terminal, or for "
            "torchrun the folder of --log-dir"
        )
    if not 0 <= rank < submitted.tasks:
        there = "only rank 0" if submitted.tasks == 1 else f"ranks 0 to {submitted.tasks - 1}"
        raise UserError(f"--rank {rank}: {run} has {there}")
    return submitted.log_of(rank)


def last_of(path: Path, lines: int | None) -> tuple[bytes, int]:
    """The last lines of a file (None: all of it), and where they end. Raises OSError."""
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        start = 0 if lines is None else _line_from_end(file, end, lines)
        file.seek(start)
        return file.read(end - start), end


def _line_from_end(file: io.BufferedReader, end: int, lines: int) -> int:
    """Where the last ``lines`` lines begin, read from behind."""
    if lines <= 0:
        return end
    file.seek(max(0, end - 1))
    # The end of the last line begins no other; half a line at the end counts as one.
    wanted = lines + (file.read(1) == b"\n")
    position = end
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        count = block.count(b"\n")
        if count >= wanted:
            at = len(block)
            for _ in range(wanted):
                at = block.rindex(b"\n", 0, at)
            return position + at + 1
        wanted -= count
    return 0


class Follower:
    """What is added to a file that may come, be replaced, or be cut while it is followed."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path = path
        self._position = position
        self._identity: tuple[int, int] | None = None

    def news(self) -> Iterator[bytes]:
        """What is new since the last call; nothing while there is no file."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            about = os.fstat(file.fileno())
            identity = (about.st_dev, about.st_ino)
            if about.st_size < self._position or self._identity not in (None, identity):
                self._position = 0
            self._identity = identity
            file.seek(self._position)
            while block := file.read(_BLOCK):
                self._position += len(block)
                yield block
