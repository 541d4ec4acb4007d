"""Has a command fork the process that its runs are forked from, which then imports nothing.

The command itself is forked from a process that has imported everything. `multiprocessing` would
start its fork server as a new process of Python, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import NoReturn

from tests.distributed.forked import Forked
from tests.distributed.launch import ROOT


def compare(words: Sequence[str], folder: Path) -> Forked:
    """``adafilter compare WORDS`` in ``folder``, forked, and its fork server as well."""
    return Forked(
        ["compare", *words],
        folder=folder,
        environment=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        figures=False,
        before=[__name__, install.__name__],
    )


def install() -> None:
    """From now on this process forks its fork server."""
    spawn = util.spawnv_passfds

    def fork(path: str, args: Sequence[str], passfds: Sequence[int]) -> int:
        program = args[-1]
        if "multiprocessing.forkserver" not in program:
            return spawn(path, args, passfds)
        pid = os.fork()
        if pid == 0:
            _serve(program, passfds)
        return pid

    util.spawnv_passfds = fork


def _serve(program: str, passfds: Sequence[int]) -> NoReturn:
    """Run the server's program as a new process would: its own signals, these files alone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    start = 3
    for descriptor in (*sorted(passfds), os.sysconf("SC_OPEN_MAX")):
        os.closerange(start, descriptor)
        start = descriptor + 1
    with suppress(SystemExit):
        exec(program, {"__name__": "__main__"})
    sys.stderr.flush()
    os._exit(0)
