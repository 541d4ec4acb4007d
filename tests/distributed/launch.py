"""Starting the real command, alone or under torchrun, with a time-out that kills its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it printed."""

    code: int
    output: str


def start(
    words: Sequence[str], *, world_size: int | None = None, folder: Path
) -> subprocess.Popen[str]:
    """Start ``adafilter WORDS`` in ``folder``; under torchrun when ``world_size`` is given."""
    command = [sys.executable, "-m", "adafilter_dist", *words]
    if world_size is not None:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        command = [sys.executable, "-m", *torchrun, "-m", "adafilter_dist", *words]
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that the time-out reaches grandchildren
    )


def wait(process: subprocess.Popen[str], timeout: float) -> Ended:
    """The end of a started command; past ``timeout`` seconds its whole group is killed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        print(output)
        raise
    return Ended(process.returncode, output)


def adafilter(
    *words: str, world_size: int | None = None, folder: Path, timeout: float = 240
) -> Ended:
    """Run ``adafilter WORDS`` to its end."""
    return wait(start(words, world_size=world_size, folder=folder), timeout)
