"""A task that goes on whatever it hears, and writes down each signal with what SLURM says then.

    python heard.py FOLDER [NAME]

One JSON object a line in FOLDER/NAME.attempt (NAME is the rank unless given): signal, time (of the
clock, seconds) and the fields of ``scontrol show job`` that tell one interruption from another.
The second attempt ends at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
FIELDS = ("JobState", "Reason", "Restarts", "PreemptTime", "EndTime")


def main() -> None:
    """Write until killed."""
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    name = sys.argv[2] if len(sys.argv) > 2 else os.environ["SLURM_PROCID"]
    with Path(sys.argv[1], f"{name}.{attempt}").open("w", buffering=1) as file:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        print(json.dumps({"signal": "start", "time": time.time()}), file=file)
        while attempt == "0":
            one = signal.Signals(signal.sigwait(SIGNALS)).name
            line = {"signal": one, "time": time.time(), **_job()}
            print(json.dumps(line), file=file)


def _job() -> dict[str, str]:
    words = ["scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout
    found = dict(re.findall(r"(?:^| )([A-Z]\w*)=(\S*)", shown))
    return {name: found.get(name, "") for name in FIELDS}


if __name__ == "__main__":
    main()
