"""Removing run folders: gone at once under their name, whatever interrupts the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist.errors import RankError, UserError
from adafilter_dist.run.ownership import LostRunError

if TYPE_CHECKING:
    from adafilter_dist.run.folder import RunFolder

REMOVED = ".removed"
"""Ends the hidden name of what is being deleted."""


def remove_folder(folder: Path) -> None:
    """Rename ``folder`` (or a file) to a hidden name, then delete it.

    What an interrupted removal left beside it is deleted too. Raises OSError; the folder is then
    there as it was, or gone.
    """
    hidden = folder.with_name(f".{folder.name[:100]}.{os.getpid()}{REMOVED}")
    folder.rename(hidden)
    for leftover in {hidden, *folder.parent.glob(f".*{REMOVED}")}:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def removed_if_not_begun(run: RunFolder) -> Iterator[None]:
    """Remove a run folder that this attempt made, where a mistake ends it before its first step.

    What a bug or another rank did stays, with what is noted of it.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if not isinstance(error, (RankError, LostRunError)):
            with suppress(OSError, UserError):  # nothing here may hide the error itself
                _take_back(run)
        raise


def _take_back(run: RunFolder) -> None:
    if run.begun or not (run.made or run.was_empty):
        return
    run.close()
    run.ownership.check()
    if run.was_empty:
        for name in os.listdir(run.path):
            remove_folder(run.path / name)
        return
    remove_folder(run.path)
    for place in run.made[1:]:
        place.rmdir()  # only where it is empty
