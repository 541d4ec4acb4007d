"""What TAB offers after ``adafilter``, by argcomplete: verbs, options, recipes, keys, run folders.

The script of ``adafilter completion SHELL`` calls ``adafilter`` itself, with what was typed so far
in variables of the environment. ``begin`` chooses the verb; its parser, once it is built, ends the
process in ``complete`` instead of parsing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import ChoicesCompleter, DirectoriesCompleter, FilesCompleter
from argcomplete.lexers import split_line

from adafilter_dist.errors import UserError

_WORD = "_ARGCOMPLETE"  # from which word on the line is the command's own: 1 for all of it


def begin(helps: Callable[[], dict[str, str]]) -> str:
    """The verb on the line whose parser is to ``complete``; ends the process if it is yet to come.

    ``helps`` gives the verbs with what each is for.
    """
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    words: list[str] = split_line(line, point)[3]
    first = int(os.environ[_WORD])
    if len(words) > first:
        os.environ[_WORD] = str(first + 1)
        return words[first]
    parser = argparse.ArgumentParser(prog="adafilter")
    parser.add_argument("--version", action="store_true")
    _offer(parser.add_argument("verb"), lambda prefix, **_: helps())
    complete(parser)
    return ""


def complete(parser: argparse.ArgumentParser) -> None:
    """Print what may come next of ``parser`` to the shell that asked, and end the process."""
    for action in parser._actions:
        if action.choices is None and not hasattr(action, "completer"):
            kinds = str(action.metavar or "").split(" | ")
            own = getattr(parser, "own_words", {}) if "key=value" in kinds else {}
            _offer(
                action,
                lambda prefix, kinds=kinds, own=own, **_: (
                    _words(prefix, kinds) | _own_words(prefix, own)
                ),
            )
    nothing = ChoicesCompleter({})  # argcomplete would offer files
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=nothing)


def _offer(action: argparse.Action, completer: Callable[..., Any]) -> None:
    action.completer = completer  # type: ignore[attr-defined]


def _words(prefix: str, kinds: Sequence[str]) -> dict[str, str]:
    """The words that an argument may be whose metavar names ``kinds``."""
    words: dict[str, str] = {}
    for kind in kinds:
        if kind == "key=value":
            words |= _key_words(prefix)
        elif kind == "KEY":
            words |= {word.rstrip("="): text for word, text in _recipe_words(prefix).items()}
        elif kind in ("RUN", "EXPORT", "ROOT"):
            words |= _run_folders(prefix)
        elif kind in ("FILE", "PICTURE", "DIR", "FOLDER"):
            words |= dict.fromkeys(FilesCompleter()(prefix), "")
    return words


def _own_words(prefix: str, own: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A verb's own words, ``methods=`` with a list of its values, and ``compare`` without."""
    key, sign, text = prefix.partition("=")
    if not sign:
        return {word: "" for word in own if word.startswith(prefix)}
    listed = text[: text.rfind(",") + 1]
    return {f"{key}={listed}{value}": "" for value in own.get(f"{key}=", ())}


def _key_words(prefix: str) -> dict[str, str]:
    from adafilter_dist.recipe.next_words import takes_path

    words = _recipe_words(prefix)
    key, sign, value = prefix.partition("=")
    if sign and takes_path(key):
        words |= dict.fromkeys((f"{key}={path}" for path in FilesCompleter()(value)), "")
    return words


def _recipe_words(prefix: str) -> dict[str, str]:
    from adafilter_dist.recipe.next_words import next_words

    return next_words(prefix)


def _run_folders(prefix: str) -> dict[str, str]:
    """Runs below ./runs, or below the folder that was typed; else the folders there are."""
    from adafilter_dist.status.find import find_runs

    root = Path(prefix.rpartition("/")[0] or "runs").expanduser()
    try:
        runs = [str(run) for run in find_runs(root)]
    except (UserError, OSError):
        runs = []
    words = [run for run in runs if run.startswith(prefix)]
    return dict.fromkeys(words or DirectoriesCompleter()(prefix), "")
