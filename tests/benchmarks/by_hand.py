"""A script as ``python SCRIPT WORDS`` runs it, in a process that has imported torch already."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def run(script: str, *words: str) -> int:
    """The exit code."""
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
