"""A program that writes the small files of a run, one after the other; to be recorded.

    python -m tests.powercut.appending RUN

It says what others may rely on from then on: "status NUMBER", "event NUMBER".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from adafilter_dist.system.files import write_json
from adafilter_dist.system.json_lines import append
from tests.powercut.replay import SETTLED


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main(run: Path) -> None:
    for number in (1, 2, 3):
        write_json(run / "status.json", {"step": number, "reason": "x" * 40 * number})
        say(f"status {number}")
        append(run / "events.jsonl", {"kind": "saved", "step": number})
        say(f"event {number}")
    # Killed while it wrote a row: the next row drops the torn one.
    with (run / "events.jsonl").open("a") as file:
        file.write('{"kind":"sav')
    say(SETTLED)
    for number in (4, 5):
        append(run / "events.jsonl", {"kind": "saved", "step": number})
        say(f"event {number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
