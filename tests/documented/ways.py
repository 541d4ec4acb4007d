"""How each documented command is tried."""

from __future__ import annotations

import re
from enum import StrEnum

from tests.documented.marks import mark_of
from tests.documented.pages import CLONE, Command


class Way(StrEnum):
    """What a test does with a command."""

    PLAYED = "run to its end, in miniature"
    DRY = "run with --dry-run, by the recipe as it is shipped"
    BATCH = "its script exists, its recipe is resolved, ranks and micro-batches go together"
    USAGE = "a form: verbs and options are those of --help"
    TARGET = "make -n"
    QUICK = "run to its end, as it stands"
    OPTIONS = "its options are parsed by the script"
    PACKAGES = "extras, packages and files are those of pyproject.toml"
    SELECTION = "pytest --collect-only selects tests"
    MARKED = "not run, for a reason in marks.py"


# Seconds as they stand; the others compare speeds for minutes. tests/benchmarks runs them small.
_QUICK = re.compile(
    r"python (-m tests\.documented"
    r"|benchmarks/(checkpoint_interval|zero)\.py.*"
    r"|benchmarks/gpu_check\.py --list)"
)


def way_of(command: Command) -> Way | None:
    """How a command is tried; None if nothing here can."""
    if mark_of(command):
        return Way.MARKED
    text, words = command.text, command.words
    script = words[1] if len(words) > 1 else ""
    match command.program:
        case "adafilter" | "python" if re.search(r" \[[^=\]]+[\]=]| \.\.\.", text):
            return Way.USAGE
        case "adafilter":
            return Way.DRY if script in ("submit", "compare") else Way.PLAYED
        case "python" if script == "launch/submit.py":
            return Way.DRY
        case "python" if _QUICK.fullmatch(text):
            return Way.QUICK
        case "python" if (CLONE / script).is_file() and script.startswith("benchmarks/"):
            return Way.OPTIONS
        case "torchrun":
            return Way.PLAYED if "-m adafilter_dist" in text else Way.OPTIONS
        case "sbatch":
            return Way.BATCH
        case "make":
            return Way.TARGET
        case "uv" if script == "pip":
            return Way.PACKAGES
        case "pip":
            return Way.PACKAGES
        case "pytest":
            return Way.SELECTION
    return None
