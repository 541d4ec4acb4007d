"""What the set-up says, and how it runs other programs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
HEARTBEAT_S = 30


class SetupError(Exception):
    """The set-up cannot go on: one line of what is wrong and what to do."""


def say(line: str) -> None:
    """A line of progress, at once."""
    print(line, flush=True)


def run(command: list[str], log: Path | None, environment: dict[str, str] | None = None) -> None:
    """Run ``command`` with its output in ``log``; SetupError with its last lines if it fails.

    A line every half minute shows that a long installation is alive.
    """
    out = log.open("a") if log else subprocess.DEVNULL
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        env=os.environ | (environment or {}),
    )
    start = time.monotonic()
    while True:
        try:
            code = process.wait(HEARTBEAT_S)
            break
        except subprocess.TimeoutExpired:
            say(f"      ... {time.monotonic() - start:.0f} s")
        except BaseException:
            process.terminate()  # Ctrl-C: do not leave an installation running
            process.wait()
            raise
    if code:
        tail = log.read_text(errors="replace").splitlines()[-15:] if log else []
        where = f"; all of it is in {log}" if log else ""
        raise SetupError("\n".join([f"{' '.join(command[:4])} ... failed{where}", *tail]))
