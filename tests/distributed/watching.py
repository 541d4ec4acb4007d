"""Commands whose output is read as it comes, and ranks that are started by hand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.distributed.launch import ROOT, Ended


class Watched:
    """A started command whose lines are read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Return once a line with ``text`` was printed; AssertionError at the end or time-out."""
        until = time.monotonic() + timeout
        with self._news:
            while not any(text in line for line in self._lines):
                left = until - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no {text!r} in: {''.join(self._lines)}")
                self._news.wait(left)

    def end(self, timeout: float = 240) -> Ended:
        code = self.process.wait(timeout)
        self._thread.join(30)
        return Ended(code, self.output)


@contextmanager
def watched(process: subprocess.Popen[str]) -> Iterator[Watched]:
    """A started command, killed with all of its session at the end."""
    try:
        yield Watched(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def begin(
    words: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start ``adafilter WORDS`` in a session of its own, with the words ``before`` before it."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "adafilter_dist", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextmanager
def ranks(words: Sequence[str], world_size: int, folder: Path) -> Iterator[list[Watched]]:
    """``adafilter WORDS`` once a rank, without torchrun: nobody but us looks after them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ExitStack() as stack:
        started = []
        for rank in range(world_size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
            place |= {"LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port}
            variables = {key: str(value) for key, value in place.items()}
            variables["MASTER_ADDR"] = "127.0.0.1"
            process = begin(words, folder, variables)
            started.append(stack.enter_context(watched(process)))
        yield started
