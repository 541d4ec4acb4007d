"""The command ``adafilter``: one verb a file in ``commands/``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from adafilter_dist import __version__
from adafilter_dist.errors import UserError, nearest
from adafilter_dist.said import exit_code

# Before torch is imported: threads that wait for each other by spinning starve one another as soon
# as anything else runs on the same cores, and a step then takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VERBS = (
    *("prepare", "train", "resume", "submit", "status", "logs", "rm"),
    *("evaluate", "compact", "inspect", "doctor"),
)


def _usage() -> str:
    lines = ["usage: adafilter VERB [recipe=NAME] [key=value ...]", ""]
    for verb in VERBS:
        module = importlib.import_module(f"adafilter_dist.commands.{verb}")
        lines.append(f"  {verb:<10} {module.HELP}")
    lines += ["", "adafilter VERB --help says more; adafilter --version tells the version."]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Run a verb; 0 done, 1 bug (with traceback), 2 bad input, 75 stopped and resumable."""
    words = list(sys.argv[1:] if words is None else words)
    verb, rest = (words[0], words[1:]) if words else ("", [])

    def command() -> int:
        if verb in ("", "-h", "--help", "help"):
            print(_usage())
            return 0 if verb else 2
        if verb == "--version":
            print(__version__)
            return 0
        if verb not in VERBS:
            raise UserError(
                f"{verb!r} is not a verb{nearest(verb, VERBS)}; there are: {', '.join(VERBS)}"
            )
        module = importlib.import_module(f"adafilter_dist.commands.{verb}")
        return int(module.run(rest))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
