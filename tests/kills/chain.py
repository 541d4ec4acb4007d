"""One run that is attempted again and again, each attempt killed in another way but the last."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.distributed.launch import free_port, kill_tree, rank_environment
from tests.kills.attempts import Attempt, ForkServer


@dataclass(frozen=True)
class Kill:
    """One attempt that was killed: how, and where it was then."""

    kind: str
    where: str


@dataclass
class Chain:
    """The attempts at one run; ``note`` is told of each that was killed."""

    server: ForkServer
    words: Sequence[str]
    folder: Path
    note: Callable[[Kill], None] = lambda kill: None
    world_size: int = 1
    tries: int = field(default=0, init=False)

    def start(self, *, stopped: bool = False, before: Sequence[str] = ()) -> list[Attempt]:
        """One more attempt: a process for each rank."""
        self.folder.mkdir(exist_ok=True)
        self.tries += 1
        port = free_port()
        attempts = []
        for rank in range(self.world_size):
            alone = self.world_size == 1
            environment = {} if alone else rank_environment(rank, self.world_size, port)
            attempts.append(
                self.server.fork(
                    ["train", *self.words],
                    folder=self.folder,
                    environment=environment,
                    output=self.folder / f"printed.{rank}.txt",
                    stopped=stopped,
                    before=before,
                )
            )
        return attempts

    def killed(
        self, attempts: Sequence[Attempt], kind: str, where: Callable[[], str] = str
    ) -> None:
        """Kill whatever is left of an attempt, wait until all are gone, and note it."""
        for attempt in attempts:
            kill_tree(attempt.pid)
        for attempt in attempts:
            attempt.wait()
        if any(attempt.code == -signal.SIGKILL for attempt in attempts):
            self.note(Kill(kind, where()))
        else:
            codes = [attempt.code for attempt in attempts]
            raise AssertionError(
                f"ended by itself with {codes} before it was killed; it printed:\n"
                + "\n".join(attempt.printed() for attempt in attempts)
            )

    def end(self) -> Path:
        """The last attempt, left alone: the finished run."""
        attempts = self.start()
        for attempt in attempts:
            code = attempt.wait()
            assert code == 0, f"exit code {code} at last; it printed:\n{attempt.printed()}"
        return self.run

    @property
    def run(self) -> Path:
        """The run folder."""
        (run,) = (self.folder / "runs").glob("*/*")
        return run

    @property
    def step(self) -> int:
        """The step of the newest checkpoint, 0 before the first."""
        found = (self.folder / "runs").glob("*/*/checkpoints/step-*")
        return max((int(re.sub(r"\D", "", folder.name)) for folder in found), default=0)


def pidfd(pid: int) -> int | None:
    """Readable once the process has ended; None if it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
