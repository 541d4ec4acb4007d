"""The command in processes forked from one that has imported everything, used like `Popen`.

Importing torch takes four seconds of a core, and most tests start several processes. One server a
test process forks them all; it ends with the test process.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from tests.kills.attempts import Attempt, ForkServer


@cache
def server(*more: str) -> ForkServer:
    """This test process's server, started at the first call; another one for ``more`` modules."""
    started = ForkServer.start(*more)
    atexit.register(started.close)
    return started


class Forked:
    """A command in a forked process; ``stdout`` is a pipe with all that it prints.

    ``before`` names a module and its function, which the process calls first.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        figures: bool,
        before: Sequence[str] = (),
    ) -> None:
        read_end, write_end = os.pipe()
        try:
            self._attempt: Attempt = server().fork(
                words,
                folder=folder,
                environment=dict(environment),
                output=Path(f"/proc/{os.getpid()}/fd/{write_end}"),
                clean=True,
                figures=figures,
                before=before,
            )
        finally:
            os.close(write_end)
        self.args = list(words)
        self.pid = self._attempt.pid
        self.stdout: IO[str] = os.fdopen(read_end, encoding="utf-8", errors="replace")
        self._printed = bytearray()

    @property
    def returncode(self) -> int | None:
        """The exit code as far as it is known, negative for a signal."""
        return self._attempt.code

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; subprocess.TimeoutExpired past ``timeout`` seconds."""
        code = self._ended_within(3600 if timeout is None else timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that is printed until nobody can print any more, then the end is waited for."""
        until = None if timeout is None else time.monotonic() + timeout
        descriptor = self.stdout.fileno()
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            part = os.read(descriptor, 65536)
            if not part:
                break
            self._printed += part
        self.stdout.close()
        self.wait(None if until is None else max(1.0, until - time.monotonic()))
        return self._printed.decode(errors="replace"), None

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, seconds: float) -> int | None:
        self._attempt.ended_within(seconds)
        return self._attempt.code
