"""How a command ends: the user's mistakes in clear lines, a bug with its traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from adafilter_dist.errors import UserError
from adafilter_dist.system.closed_output import BROKEN_PIPE, discard, drop_unread


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; its code, that of a UserError once it is said, or 130 after Ctrl-C.

    Where nobody reads what it prints (``| head -1``) it ends without a word, with 141.
    """
    try:
        try:
            return _code_of(command)
        finally:
            _flush()
    except BrokenPipeError:
        if not drop_unread():
            raise
        return BROKEN_PIPE


def _code_of(command: Callable[[], int]) -> int:
    try:
        return command()
    except UserError as error:
        # Every rank meets the same mistake; one of them says it.
        if int(os.environ.get("RANK", "0")) == 0 or error.every_rank:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # Any path that a user gives can be one; the first look at it finds out.
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename)
        print(f"error: {name[:40]}... is too long a name ({len(name)} characters)", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _flush() -> None:
    """Flush the output now, while a failure to write it can still be reported."""
    if sys.stdout is None:  # closed by whoever started the command
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None
