"""A process that starts a cluster's daemons and takes them with it, however the tests end.

Daemons stay in the foreground as its children. They are killed, and the cgroups that they were
given removed, when they are no longer wanted: the tests say so, close the socket, end or are
killed. Should this process be killed itself, the kernel kills its children (PR_SET_PDEATHSIG),
and a node's first process takes the node with it: it is the init of a PID namespace.

One JSON object a line on the socket whose number is the first argument; the second is the process
that the cluster belongs to, the third a folder to make and to remove at the end. Asked is ``start``
(a name) with ``words``, ``environment``, ``output`` (a file) and ``cgroup`` (empty, or a folder to
make and to start in), ``kill`` (a name) or ``ended``. Answered is ``pid``; ``killed``, once nothing
of it is left; the exit codes of what has ended by itself (negative: the signal).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
_PID_NAMESPACE = "/proc/self/ns/pid"
_PATIENCE = 20.0  # seconds for the kernel to end what was killed and to let cgroups go
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Serve until the cluster is no longer wanted, then leave nothing behind."""
    for one in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    control = socket.socket(fileno=int(sys.argv[1]))
    owner, sockets = int(sys.argv[2]), Path(sys.argv[3])
    sockets.mkdir(mode=0o755)
    _LIBC.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = Keeper()
    try:
        watched = os.pidfd_open(owner)
        lines = control.makefile("rb", buffering=0)
        while os.getppid() == owner:
            ready, _, _ = select.select([control.fileno(), watched], [], [])
            line = lines.readline() if control.fileno() in ready else b""
            if not line:
                break
            control.sendall(json.dumps(keeper.answer(json.loads(line))).encode() + b"\n")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper.end()
        shutil.rmtree(sockets, ignore_errors=True)
    return 0


class Keeper:
    """The daemons that run, and the cgroups they were given."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._cgroups: dict[str, Path] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what one line asks for."""
        if "start" in request:
            return {"pid": self._start(request.pop("start"), **request)}
        if "kill" in request:
            self._kill([request["kill"]])
            return {"killed": request["kill"]}
        codes = {name: process.poll() for name, process in self._running.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def end(self) -> None:
        """Kill everything, the youngest first, and remove the cgroups."""
        self._kill(list(reversed(self._running)))

    def _start(
        self, name: str, *, words: list[str], environment: dict[str, str], output: str, cgroup: str
    ) -> int:
        if cgroup:
            self._cgroups[name] = Path(cgroup)
            self._cgroups[name].mkdir(parents=True, exist_ok=True)
        me = os.getpid()

        def before() -> None:  # in the child; this process has no threads
            _LIBC.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != me:
                os._exit(1)
            for one in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(one, signal.SIG_DFL)
            if cgroup:
                Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))

        with open(output, "ab") as file:
            process = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=before,
            )
        self._running[name] = process
        return process.pid

    def _kill(self, names: list[str]) -> None:
        processes = [self._running.pop(name) for name in names if name in self._running]
        children = [pid for process in processes for pid in _children(process.pid)]
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in processes:
            # unshare ends after the init of its namespace, that after all others of the namespace.
            if not _has_namespace(process.pid):
                process.kill()
        cgroups = [self._cgroups.pop(name) for name in names if name in self._cgroups]
        for cgroup in cgroups:
            thaw(cgroup)
        until = time.monotonic() + _PATIENCE
        for process in processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)  # slurmctld's helper is an orphan now
        for cgroup in cgroups:
            remove(cgroup)
            with suppress(OSError):
                cgroup.parent.rmdir()  # with the cluster's last node


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _has_namespace(pid: int) -> bool:
    try:
        inner, outer = os.readlink(f"/proc/{pid}/ns/pid_for_children"), os.readlink(_PID_NAMESPACE)
    except OSError:
        return False
    return inner != outer


def thaw(cgroup: Path) -> None:
    """Let the processes in a cgroup run, without which not even a kill ends them."""
    for folder, _, _ in os.walk(cgroup):
        with suppress(OSError):
            Path(folder, "freezer.state").write_text("THAWED")


def remove(cgroup: Path) -> None:
    """Remove a cgroup and those in it, once the processes in them have quite ended."""
    until = time.monotonic() + _PATIENCE
    while cgroup.exists() and time.monotonic() < until:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
