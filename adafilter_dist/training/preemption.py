"""Signals become one flag; all ranks agree on it inside the step's reduction.

A handler only sets the flag. The flag travels with the step's statistics and is acted on
``DELAY`` steps later, when every rank has read the same sum: nobody waits, nobody saves alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from adafilter_dist.slurm.environment import SlurmEnvironment

DELAY = 2
"""Steps between a flag's reduction and what is done about it, the same on every rank."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


TIME_LIMIT = "time limit"
OUTPUT_CLOSED = "closed output"
"""Why a run stops whose output went to a pipe that nobody reads any more."""

_STOPPING = "stopping after a few steps, once saved (an evaluation is finished before)"


class StopFlag:
    """Whether this rank was asked to stop, and by what: a signal's name, or the time limit.

    ``ends_at`` is when the job will be killed (seconds since 1970), ``needs`` how many seconds a
    stop takes, as measured. The flag rises by itself when there is just enough time left.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.ends_at: float | None = None
        self.needs = 0.0
        self.answer = _STOPPING
        """What is printed at once when the first signal comes."""
        self._since = 0.0

    @property
    def raised(self) -> bool:
        """Whether a signal has come, or time is running out."""
        # Half as much again, and ten seconds: a shared file system has slow moments.
        late = time.time() + 1.5 * self.needs + 10.0
        if not self.reason and self.ends_at is not None and late >= self.ends_at:
            self.reason = TIME_LIMIT
        return bool(self.reason)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler: note the first signal; a second INT or TERM over 1 s later leaves at once.

        USR2 followed by TERM, as clusters send them, is one stop.
        """
        now = time.monotonic()
        if not self.reason:
            self.reason, self._since = signal.Signals(number).name, now
            self._say_so()
        elif (
            number in (signal.SIGINT, signal.SIGTERM)
            and self.reason in ("SIGINT", "SIGTERM")
            and now - self._since > 1.0
            and os.isatty(0)
        ):
            raise KeyboardInterrupt

    def ask(self, reason: str) -> None:
        """Ask to stop without a signal."""
        self.reason = self.reason or reason

    def _say_so(self) -> None:
        """Answer the signal on rank 0 with os.write: print may be interrupted in its own lock."""
        if os.environ.get("RANK", str(SlurmEnvironment().task or 0)) != "0":
            return
        again = "; Ctrl-C again leaves at once, unsaved" if os.isatty(0) else ""
        line = f"{self.reason}: {self.answer}{again}\n"
        with suppress(OSError):
            # At a terminal ^C and the progress bar stand on a line of their own.
            os.write(2, ("\n" * os.isatty(2) + line).encode())


@contextmanager
def stop_on_signal(flag: StopFlag | None = None, *, last: bool = False) -> Iterator[StopFlag]:
    """Catch TERM, INT, USR1 and USR2 inside, and restore the previous handlers afterwards.

    ``last``: only the end of the process follows, so signals are ignored afterwards instead.
    Python takes a while to exit, and a signal would kill a process whose work is done.
    """
    flag = flag or StopFlag()
    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
    try:
        for number in _SIGNALS:
            before[number] = signal.signal(number, flag.on_signal)
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last else handler)
