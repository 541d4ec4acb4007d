"""What a process of a comparison does: train one run, or make everything ready for all of them.

Processes are forked from one that has imported torch and the training (multiprocessing's fork
server), so that a run does not wait for these imports. Each run has a fresh process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    *("adafilter_dist.training.attempt", "adafilter_dist.compare.ready"),
    "adafilter_dist.compare.ending",
    *("torchvision", "rich.progress"),
    # What data and figures need, where it is installed. ffcv starts threads: it is left to the run.
    *("numba", "llvmlite.binding", "cv2", "matplotlib.figure", "matplotlib.backends.backend_agg"),
)
"""Modules of the process that all others are forked from; they must start no threads."""


def train(recipe: Mapping[str, Any], log: str, environment: Mapping[str, str]) -> NoReturn:
    """Train one run to its end or to a stop; the exit code is that of `adafilter train`.

    ``recipe`` is a resolved one as plain types; what is printed is added to the file ``log``.
    """
    _die_with_parent()
    os.setsid()  # Ctrl-C in a terminal reaches the command, which ends its runs one way
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for target in (1, 2):
        os.dup2(output, target)

    from adafilter_dist.recipe import Recipe
    from adafilter_dist.system.console import Console
    from adafilter_dist.system.exit_code import exit_code
    from adafilter_dist.training.attempt import run_attempt
    from adafilter_dist.training.preemption import StopFlag, stop_on_signal
    from adafilter_dist.training.stop_policy import StopPolicy

    flag = StopFlag()
    with stop_on_signal(flag, last=True):  # from now on: building the network takes a while
        code = exit_code(
            lambda: run_attempt(
                Recipe.model_validate(recipe),
                Console(soft_wrap=True),
                stop_policy=StopPolicy(flag),
            )
        )
    sys.exit(code)


def make_ready(folder: str) -> NoReturn:
    """Prepare and check everything; the exit code is 2 where something is missing, and printed."""
    _die_with_parent()

    from adafilter_dist.compare import ready
    from adafilter_dist.compare.plan import Plan
    from adafilter_dist.system.console import Console
    from adafilter_dist.system.exit_code import exit_code

    def make() -> int:
        place = Path(folder)
        ready.make_ready(Plan.read(place), place, Console(), alone=True)
        return 0

    sys.exit(exit_code(make))


def conclude(folder: str) -> NoReturn:
    """Average and write the results, once all runs are over; prints them."""
    _die_with_parent()

    from adafilter_dist.compare import ending
    from adafilter_dist.system.console import Console
    from adafilter_dist.system.exit_code import exit_code

    sys.exit(exit_code(lambda: ending.conclude(Path(folder), Console())))


def _die_with_parent() -> None:
    """Have this process killed once the command is gone, however that died.

    The kernel's own way knows the process that forked us, and that is the fork server.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()
