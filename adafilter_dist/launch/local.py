"""Runs as processes of this machine, in the background, one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_json

_MODULE = "adafilter_dist.launch.local"


@dataclass(frozen=True)
class Turn:
    """A command and the file that its output is added to; ``run`` is the run that it trains."""

    command: list[str]
    log: str
    run: str | None = None


def command_line(words: Sequence[str], processes: int) -> list[str]:
    """``adafilter WORDS`` in so many processes."""
    if processes == 1:
        return [sys.executable, "-u", "-m", "adafilter_dist", *words]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, "-u", *torchrun, "-m", "adafilter_dist", *words]


def start(turns: Sequence[Turn], plan: Path, environment: dict[str, str]) -> int:
    """Start the commands in the background; the process id that a TERM ends them by.

    ``plan`` is the file they are written to.
    """
    write_json(plan, [asdict(turn) for turn in turns])
    worker = subprocess.Popen(
        [sys.executable, "-m", _MODULE, str(plan)],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it stays when the terminal is closed
    )
    return worker.pid


def is_running(pid: str) -> bool:
    """Whether a process of this machine is one that :func:`start` started."""
    try:
        words = Path("/proc", pid, "cmdline").read_bytes()
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # In the first moments it has no words yet, in its last ones none any more.
    return state not in "ZX" and (not words or _MODULE.encode() in words.split(b"\0"))


def main(plan: Path) -> int:
    """Run the commands of a plan; TERM and INT end the one that runs, and the others."""
    worker = _Worker()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.end)
    codes = [worker.run(Turn(**turn)) for turn in json.loads(plan.read_text())]
    return max(codes, default=0)


class _Worker:
    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    def end(self, number: int, frame: FrameType | None) -> None:
        if self._child is not None and not self._ended:
            self._child.send_signal(signal.SIGTERM)
        self._ended = True

    def _is_ended(self) -> bool:
        return self._ended

    def run(self, turn: Turn) -> int:
        code = 0 if self._ended else self._start(turn)
        if turn.run is not None:
            self._record_unstarted(Path(turn.run), turn.log, code)
        return code

    def _record_unstarted(self, run: Path, log: str, code: int) -> None:
        """Record the end of a run that never started: its own process cannot."""
        files = RunFiles(run)
        before = files.read_status()
        if before.get("state") != "queued":
            return
        state, reason = "failed", f"exit code {code} before it began; see {log}"
        if self._ended:
            state, reason = "stopped", "cancelled before it began"
        with suppress(OSError):
            files.note_state(before, state, reason)

    def _start(self, turn: Turn) -> int:
        with open(turn.log, "ab") as log:
            child = subprocess.Popen(turn.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._child = child
            if self._is_ended():  # the signal came in between
                child.send_signal(signal.SIGTERM)
            return abs(child.wait())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
