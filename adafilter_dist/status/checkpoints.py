"""The checkpoints that a run has left."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.run.files import RunFiles
from adafilter_dist.status.model import CheckpointFolder


def read_checkpoints(run: Path) -> list[CheckpointFolder]:
    """All checkpoints, the oldest first."""
    checkpoints = []
    for folder in reversed(RunFiles(run).checkpoint_folders()):
        step = folder.name.removeprefix("step-")
        if step.isdecimal():
            checkpoints.append(CheckpointFolder(folder.name, int(step), _size(folder)))
    return checkpoints


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # replaced by a newer one this very moment
        return 0
