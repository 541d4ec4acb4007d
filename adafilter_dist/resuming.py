"""The command that goes on with a run, as messages name it."""

from __future__ import annotations

import shlex
from pathlib import Path


def resume_line(run: Path | str, *words: str) -> str:
    """``adafilter resume RUN WORD ...``, quoted for a shell."""
    return shlex.join(["adafilter", "resume", str(run), *words])
