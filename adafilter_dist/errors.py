"""Errors that are the user's to mend: one clear line each, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message says what, where, what is allowed and what to do.

    The command prints each line of it after ``error:`` and exits with code 2.
    """

    exit_code = 2
    every_rank = False  # True: not every rank has met it, so whoever has must say it


class DivergedError(UserError):
    """The loss became NaN or infinite; names step and learning rate."""

    exit_code = 1


class RankError(UserError):
    """What one rank met and not all: whoever has says so."""

    exit_code = 1
    every_rank = True


class LostPeerError(RankError):
    """Another rank ended, or gives no answer."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest allowed word, or an empty string."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
