"""Which folders are runs."""

from __future__ import annotations

import os
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles

_DEPTH = 4  # of runs below a folder of runs; runs/<recipe>/<hash> is 2


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, even if half of it is missing."""
    try:
        return folder.is_dir() and RunFiles(folder).marks() > 0
    except OSError:  # not for us to look into
        return False


def find_runs(root: Path) -> list[Path]:
    """``root`` if it is a run, else the runs below it; UserError if there is none."""
    if is_run(root):
        return [root]
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise UserError(f"{root}: {what}; give a run or a folder of runs: adafilter status PATH")
    runs = []
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        if folder != root and is_run(folder):
            runs.append(folder)
            folders.clear()
        elif len(folder.relative_to(root).parts) >= _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    if not runs:
        raise UserError(f"{root}: no run, and no run in it; give another: adafilter status PATH")
    return sorted(runs)
