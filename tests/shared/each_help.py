"""``adafilter VERB --help`` of every verb, each in a process of its own.

All are forked from one that has imported what every command imports first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from adafilter_dist.__main__ import VERBS

_EACH = """\
import json, os, runpy, sys
import adafilter_dist.recipe
codes = {}
for verb in sys.argv[2:]:
    pid = os.fork()
    if pid == 0:
        for number, name in ((1, "out"), (2, "err")):
            if number == 2 or sys.argv[1] == "kept":
                os.dup2(os.open(f"{verb}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["adafilter", verb, "--help"]
        try:
            runpy.run_module("adafilter_dist", run_name="__main__", alter_sys=True)
        finally:
            assert "torch" not in sys.modules
    codes[verb] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps(codes), file=sys.stderr)
"""


class Helped(NamedTuple):
    """How one ended; ``out`` is empty where the output went elsewhere."""

    code: int
    out: str
    err: str


def each_help(folder: Path, output: int | None = None) -> dict[str, Helped]:
    """By verb; what they print goes to ``output``, or is kept. None of them imports torch."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", _EACH, "kept" if output is None else "elsewhere", *VERBS],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=150,
        check=True,
    )
    found = {}
    for verb, code in json.loads(done.stderr).items():
        out, err = (folder / f"{verb}.{name}" for name in ("out", "err"))
        found[verb] = Helped(code, out.read_text() if out.exists() else "", err.read_text())
    return found
