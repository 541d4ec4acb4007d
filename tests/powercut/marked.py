"""Runs a module so that its trace says which line of the package asked for each fsync.

    python -m tests.powercut.marked MODULE ARGUMENTS

Before each fsync a call that does nothing carries the lines to the trace: a look for a file whose
name is the mark.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.powercut.trace import MARK


def _marking(real: Callable[[Any], None]) -> Callable[[Any], None]:
    def sync(file: Any) -> None:
        lines: list[str] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if "/adafilter_dist/" in frame.f_code.co_filename:
                name = os.path.basename(frame.f_code.co_filename)
                lines.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
        os.access(MARK + " < ".join(lines), os.F_OK)
        real(file)

    return sync


if __name__ == "__main__":
    for name in ("fsync", "fdatasync"):
        setattr(os, name, _marking(getattr(os, name)))
    module = sys.argv[1]
    del sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
