"""Errors that are the user's to mend, and what their messages are made of.

Each is one clear line, exit code 2, without a traceback.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 160


class UserError(Exception):
    """Bad input. The message says what, where, what is allowed and what to do.

    The command prints each line of it after ``error:`` and exits with code 2.
    """

    exit_code = 2
    every_rank = False  # True: it may occur on one rank only, so each rank prints its own


class DivergedError(UserError):
    """The loss became NaN or infinite; names step and learning rate."""

    exit_code = 1


class CheckFailedError(UserError):
    """What was written was checked and is wrong, so that it was removed again."""

    exit_code = 1


class RankError(UserError):
    """An error that may occur on one rank only; that rank prints it."""

    exit_code = 1
    every_rank = True


class LostPeerError(RankError):
    """Another rank ended, or gives no answer."""


def closest(word: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """The allowed word that looks most like ``word``, in any case, or an empty string."""
    if len(word) > _LONGEST:  # comparing would take longer than the mistake is worth
        return ""
    by_case = {name.lower(): name for name in allowed}
    match = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=cutoff)
    return by_case[match[0]] if match else ""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest allowed word, or an empty string."""
    match = closest(word, allowed)
    return f" (did you mean {match!r}?)" if match else ""


def no_such(kind: str, path: Path) -> str:
    """``no such KIND``, with the nearest name beside it, or the folder above that is missing too.

    ``kind`` is ``folder`` or ``file``.
    """
    above = path.parent
    if not above.is_dir():
        while not above.parent.is_dir():
            above = above.parent
        return f"no such {kind} ({above} is missing)"
    try:
        beside = [entry.name for entry in above.iterdir() if not entry.name.startswith(".")]
    except OSError:
        beside = []
    return f"no such {kind}{nearest(path.name, beside)}"


def shown(text: str) -> str:
    """``text`` in one line of a message: what cannot be printed escaped, a long one cut."""
    line = printable(text[: _LONGEST + 1])
    cut = len(line) > _LONGEST
    return f"{line[:_LONGEST]}... ({len(text)} characters)" if cut else line


def resume_line(run: Path | str, *words: str) -> str:
    """``adafilter resume RUN WORD ...``, quoted for a shell."""
    return shlex.join(["adafilter", "resume", str(run), *words])


def printable(text: str | Path) -> str:
    r"""The text with control characters and bytes that are not UTF-8 as ``\n``, ``\xff``."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def unprintable(name: str) -> str:
    """What makes a name unfit for the name of a class; empty where nothing does."""
    if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
        return "is not UTF-8"
    return "" if name.isprintable() else "has control characters in it"
