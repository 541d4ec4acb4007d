"""The harness's end of the fork server: attempts that are started, watched and killed."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.distributed.launch import ENVIRONMENT, ROOT, kill_tree

PATIENCE = 300.0
"""Seconds after which what was waited for will not come."""


@dataclass
class Attempt:
    """One forked process of a run; ``code`` is None while it runs."""

    server: ForkServer
    pid: int
    output: Path
    code: int | None = None
    gone: bool = False
    stopped: bool = False

    def kill(self) -> None:
        """SIGKILL to the process and to all that it has started, then wait until all are gone."""
        kill_tree(self.pid)
        self.wait()

    def ended_within(self, seconds: float) -> bool:
        """Whether the process ends by itself within ``seconds``; returns as soon as it does."""
        self.server.listen(lambda: self.code is not None, seconds)
        return self.code is not None

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code, once the process and all of its session have ended.

        Past ``seconds`` all are killed and TimeoutError is raised with what was printed.
        """
        self.server.listen(lambda: self.gone, seconds)
        if not self.gone or self.code is None:
            kill_tree(self.pid)
            raise TimeoutError(f"still there after {seconds:g} s; it printed:\n{self.printed()}")
        return self.code

    def printed(self) -> str:
        """All that it and the attempts before it have printed into the same file."""
        return self.output.read_text(errors="replace")


@dataclass
class ForkServer:
    """The process with everything imported, and the attempts it has forked."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    unread: bytes = b""
    ready: bool = False
    attempts: dict[int, Attempt] = field(default_factory=dict)
    _newest: Attempt = field(init=False)

    @classmethod
    def start(cls, *more: str) -> ForkServer:
        """Start one; it takes the seconds that importing takes. ``more`` modules are imported."""
        here, there = socket.socketpair()
        environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.forkserver", str(there.fileno()), *more],
            pass_fds=[there.fileno()],
            cwd=ROOT,
            env=environment,
        )
        there.close()
        server = cls(process, here)
        server.listen(lambda: server.ready, PATIENCE)
        if not server.ready:
            raise TimeoutError("the fork server does not get ready")
        return server

    def close(self) -> None:
        """End the server and whatever it has left."""
        for attempt in self.attempts.values():
            kill_tree(attempt.pid)
        self.control.close()
        try:
            self.process.wait(30)
        finally:
            kill_tree(self.process.pid)

    def fork(
        self,
        words: Sequence[str],
        *,
        folder: Path,
        environment: dict[str, str] | None = None,
        output: Path | None = None,
        stopped: bool = False,
        before: Sequence[str] = (),
        clean: bool = False,
        figures: bool = False,
    ) -> Attempt:
        """Start ``adafilter WORDS`` in ``folder``; what it prints is added to ``output``.

        ``stopped``: it waits for SIGCONT. ``before`` names a module and a function in it, called
        with the words after them in the forked process; without ``words`` it is all that is called,
        and what it returns is the exit code. ``clean``: it has the variables of
        ``environment`` alone and not the server's beside them. ``figures``: they are drawn.
        """
        output = output or folder / "printed.txt"
        request = {
            "words": list(words),
            "folder": str(folder),
            "environment": environment or {},
            "output": str(output),
            "stopped": stopped,
            "before": list(before),
            "clean": clean,
            "figures": figures,
        }
        self.control.sendall(json.dumps(request).encode() + b"\n")
        attempt = self._newest = Attempt(self, 0, output)
        self.listen(lambda: attempt.stopped if stopped else attempt.pid > 0, PATIENCE)
        if attempt.pid == 0:
            raise TimeoutError("the fork server does not answer")
        return attempt

    def listen(self, enough: Callable[[], bool], seconds: float) -> None:
        """Take in what the server says until ``enough()``, at most for ``seconds``."""
        until = time.monotonic() + seconds
        while not enough():
            left = max(0.0, until - time.monotonic())
            if not select.select([self.control], [], [], left)[0]:
                return
            said = self.control.recv(65536)
            if not said:
                raise RuntimeError("the fork server has ended")
            *lines, self.unread = (self.unread + said).split(b"\n")
            for line in lines:
                self._note(json.loads(line))

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                self.ready = True
            case {"forked": pid}:
                self._newest.pid = pid
                self.attempts[pid] = self._newest
            case {"stopped": pid}:
                self.attempts[pid].stopped = True
            case {"ended": pid, "code": code}:
                self.attempts[pid].code = code
            case {"gone": pid}:
                self.attempts[pid].gone = True
            case _:
                raise RuntimeError(f"the fork server said {message}")
