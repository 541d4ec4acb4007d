"""The tests' end of the keeper: starting and killing a cluster's daemons by name."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Keeper:
    """A running ``tests.cluster.keeper`` that belongs to this process.

    It makes the folder ``sockets`` and removes it at the end; what it prints goes to ``log``.
    """

    def __init__(self, log: Path, sockets: Path) -> None:
        self._log = log
        self._control, other = socket.socketpair()
        self._control.settimeout(60)
        self._lines = self._control.makefile("rb", buffering=0)
        self._one_at_a_time = threading.Lock()
        words = ["-m", "tests.cluster.keeper", f"{other.fileno()}", f"{os.getpid()}", str(sockets)]
        with other, log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then say what to do
            )

    def start(
        self,
        name: str,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: Path,
        cgroup: Path | None = None,
    ) -> int:
        """Start a daemon that stays in the foreground; its process id."""
        answer = self._ask(
            start=name,
            words=list(words),
            environment=dict(environment),
            output=str(output),
            cgroup=str(cgroup or ""),
        )
        return int(answer["pid"])

    def kill(self, name: str) -> None:
        """Kill -9 a daemon, and all of the node if it is a node's; returns once it is gone."""
        self._ask(kill=name)

    def ended(self) -> dict[str, int]:
        """Daemons that have ended by themselves, with their exit codes."""
        return self._ask(ended=True)

    def close(self) -> None:
        """Kill all that was started; returns once nothing of it is left."""
        self._control.close()
        self._lines.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()  # and its children with it
            self.process.wait()

    def _ask(self, **request: Any) -> dict[str, Any]:
        line = b""
        # Tests may wait for several things, each in its thread.
        with self._one_at_a_time, suppress(ConnectionError):
            self._control.sendall(json.dumps(request).encode() + b"\n")
            line = self._lines.readline()
        if not line:
            printed = self._log.read_text(errors="replace")
            raise RuntimeError(f"the keeper of the cluster has ended:\n{printed}")
        answer: dict[str, Any] = json.loads(line)
        return answer
