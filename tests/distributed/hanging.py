"""Ways to hang, put into the real command: rank ``HANG_RANK`` does so as it begins step 6.

``HANG_WHERE`` names other places: as the weights are loaded, or in the test at the end.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adafilter_dist.training import final_report, session, step

STEP = 6


def stop() -> None:
    """The process is stopped, and nobody lets it go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def loop() -> None:
    """An endless loop in Python, in which other threads run."""
    while True:
        pass


def hold() -> None:
    """A loop in C, for years, that lets no other thread into the interpreter."""
    re.match("(a+)+b", "a" * 64)


def wait() -> None:
    """A deadlock: the collective of the step is never entered."""
    threading.Event().wait()


def read() -> None:
    """A file system that does not answer: a pipe that nobody writes to."""
    pipe = Path("pipe").absolute()
    os.mkfifo(pipe)
    pipe.read_bytes()


def install() -> None:
    """From now on this process hangs where it should, if it is that rank."""
    if os.environ["RANK"] != os.environ["HANG_RANK"]:
        return
    hang: Callable[[], None] = globals()[os.environ["HANG_HOW"]]
    where = os.environ.get("HANG_WHERE")
    if where == "weights":
        session.load_backbone = _before(hang, session.load_backbone)
    elif where == "test":
        final_report.measure = _before(hang, final_report.measure)
    else:
        _hang_in_step(hang)


def _before(hang: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def hanging(*values: Any, **named: Any) -> Any:
        hang()
        return function(*values, **named)

    return hanging


def _hang_in_step(hang: Callable[[], None]) -> None:
    inputs = step.TrainingStep._inputs

    def hanging(self: step.TrainingStep, batch: Any, number: int, *more: Any) -> Any:
        if number == STEP:
            Path("hung-at").write_text(str(time.time()))
            hang()
        return inputs(self, batch, number, *more)

    step.TrainingStep._inputs = hanging  # type: ignore[method-assign]
