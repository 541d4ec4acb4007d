"""Starting the real command, alone or under torchrun, with a time-out that kills its children.

Alone it is forked from a process that has imported everything (forked.py), which saves seconds.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = dict(os.environ)
"""As it was when the tests were collected: without what a single test has set."""


class Process(Protocol):
    """What the tests use of a started command: `subprocess.Popen[str]`, or `forked.Forked`."""

    pid: int
    stdout: IO[str] | None

    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def communicate(self, *, timeout: float | None = None) -> tuple[str, Any]: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it printed."""

    code: int
    output: str


def start(
    words: Sequence[str],
    *,
    world_size: int | None = None,
    folder: Path,
    restarts: int = 0,
    module: str = "adafilter_dist",
    environment: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    figures: bool = False,
) -> Process:
    """Start ``adafilter WORDS`` in ``folder``; under torchrun when ``world_size`` is given.

    torchrun starts the ranks again up to ``restarts`` times. ``module`` is what python runs, and
    the words ``before`` come before it. Without torchrun and ``before`` no ``figures`` are drawn
    unless they are asked for.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
    if world_size is None and module == "adafilter_dist" and not before:
        from tests.distributed.forked import Forked  # it needs what is below

        return Forked(words, folder=folder, environment=environment, figures=figures)
    command = [*before, sys.executable, "-m", module, *words]
    if world_size is not None:
        torchrun = [
            *("torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={world_size}", f"--max-restarts={restarts}"),
        ]
        command = [sys.executable, "-m", *torchrun, "-m", module, *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # signals to the tests' terminal are not for it
    )


def wait(process: Process, timeout: float) -> Ended:
    """The end of a started command; past ``timeout`` seconds it is killed with its descendants."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        kill_tree(process.pid)
        output, _ = process.communicate()
        print(output)
        raise
    return Ended(process.returncode, output)


def adafilter(
    *words: str,
    world_size: int | None = None,
    folder: Path,
    timeout: float = 400,
    figures: bool = False,
) -> Ended:
    """Run ``adafilter WORDS`` to its end."""
    return wait(start(words, world_size=world_size, folder=folder, figures=figures), timeout)


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and its descendants, of which some have sessions of their own."""
    for one in (pid, *descendants(pid)):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes that ``pid`` has started, and those that these have."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found  # it has ended
    for task in tasks:
        try:
            listed = Path(f"/proc/{pid}/task/{task}/children").read_text()
        except OSError:
            continue  # the thread has
        children = [int(child) for child in listed.split()]
        for child in children:
            found += [child, *descendants(child)]
    return found


def await_that(condition: Callable[[], bool], process: Process, timeout: float = 240) -> None:
    """Return once ``condition()``; AssertionError if the process ends or time runs out before."""
    ended = os.pidfd_open(process.pid)
    until = time.monotonic() + timeout
    try:
        while not condition():
            over = bool(select.select([ended], [], [], 0.01)[0]) and not condition()
            if over or time.monotonic() > until:
                kill_tree(process.pid)
                raise AssertionError(f"ended or late: {process.communicate()[0]}")
    finally:
        os.close(ended)


def ranks_of(agent: int) -> dict[int, int]:
    """torchrun's workers that are alive: rank -> process id."""
    found = {}
    for pid in descendants(agent):
        try:
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        values = dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair)
        if "RANK" in values and b"writer" not in words:
            found[int(values["RANK"])] = pid
    return found


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """torchrun's variables, for processes that are started by hand on this machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
