"""Frees the room of runs that are over: their checkpoints, which nothing goes on from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.removal import remove_folder


def remove_checkpoints(run: Path) -> None:
    """Delete the checkpoints of a finished run; best/ and all figures stay."""
    with suppress(OSError):  # they take room, no more
        remove_folder(RunFiles(run).checkpoints)
