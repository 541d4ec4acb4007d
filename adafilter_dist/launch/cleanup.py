"""A submission that fails leaves nothing behind: the folders it made are removed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adafilter_dist.run.files import RunFiles


@contextmanager
def removed_on_failure(folders: Iterable[Path]) -> Iterator[None]:
    """Remove those of ``folders`` that the block made, with empty ones above, where it fails."""
    new = {folder for folder in folders if not folder.exists()}
    above = {place for folder in new for place in folder.parents if not place.exists()}
    try:
        yield
    except BaseException:
        for folder in new:
            files = RunFiles(folder)
            # If one of these exists, another process uses the run by now.
            if not files.submitted.exists() and not files.attempts.exists():
                shutil.rmtree(folder, ignore_errors=True)
        for place in sorted(above, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                place.rmdir()
        raise
