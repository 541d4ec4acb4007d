"""How a command ends: the user's mistakes in clear lines, a bug with its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from adafilter_dist.errors import UserError


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; its code, that of a UserError once it is said, or 130 after Ctrl-C."""
    try:
        return command()
    except UserError as error:
        # Every rank meets the same mistake; one of them says it.
        if int(os.environ.get("RANK", "0")) == 0 or error.every_rank:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
