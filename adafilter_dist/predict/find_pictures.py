"""The picture files that words name: files, folders, patterns, a list on standard input."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adafilter_dist.data.sources.walk import Contents, contents
from adafilter_dist.errors import UserError, no_such, printable, shown
from adafilter_dist.pictures.formats import is_picture, unread_by_suffix

STANDARD_INPUT = "-"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHOWN = 5


def find_pictures(words: Sequence[str], lines: Iterable[str] = ()) -> list[Path]:
    """The files of all words, in their order.

    A word is a file, whatever its name; a folder, of which all pictures are taken, those of folders
    in it too, by name, then those of folders that links in it lead to, each once; a pattern (``*``,
    ``?``, ``[...]``, ``**``) that matches such; or ``-``, for which the paths in ``lines`` stand,
    one a line. A path of the list that is not there is kept: it is a bad picture. UserError with a
    line for each word that names nothing, for URLs, and for a folder that cannot be read.
    """
    pictures: list[Path] = []
    mistakes: list[str] = []
    for word in words:
        try:
            if word == STANDARD_INPUT:
                pictures += _listed(lines)
            else:
                pictures += _named(word)
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        more = [f"... and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else []
        raise UserError("\n".join([*mistakes[:_SHOWN], *more]))
    return pictures


def _named(word: str) -> list[Path]:
    _refuse_url(word)
    path = Path(word).expanduser()
    if path.is_dir():
        pictures, others = _in_folder(path)
        if not pictures:
            more = f"; there are {unread_by_suffix(others)}" if others else ""
            raise UserError(f"{printable(path)}: no pictures in it{more}")
        return pictures
    if path.exists():
        return [path]
    if glob.has_magic(word):
        if "**" in path.parts:
            files = _matches(path.parts)
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path)))]
            files = [match for match in matches if match.is_file() and is_picture(match.name)]
            folders = [match for match in matches if match.is_dir()]
            files += [file for folder in folders for file in _in_folder(folder)[0]]
        if not files:
            raise UserError(f"{shown(word)}: no picture matches")
        return files
    raise UserError(f"{shown(word)}: {no_such('file', path)}")


def _in_folder(top: Path) -> tuple[list[Path], list[str]]:
    """The pictures below a folder, and the names of other files; each real folder once.

    Raises UserError where a folder cannot be read.
    """
    pictures: list[Path] = []
    others: list[str] = []
    for inside in _walk(top, once=True):
        pictures += _files(inside)
        others += inside.others
    return pictures, others


def _matches(parts: Sequence[str]) -> list[Path]:
    """The pictures that a pattern with ``**`` matches, sorted.

    Python's glob follows a link that leads back 40 times; with two such links it never ends.
    """
    at = parts.index("**")
    top = Path(*parts[:at])
    tops = [Path(match) for match in glob.glob(str(top))] if glob.has_magic(str(top)) else [top]
    return sorted(
        path
        for top in tops
        if top.is_dir()
        for inside in _walk(top, once=False)
        for path in _files(inside)
        if _fits(path.relative_to(top).parts, parts[at:])
    )


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    fits = bool(names) and fnmatch.fnmatchcase(names[0], patterns[0])
    return fits and _fits(names[1:], patterns[1:])


def _walk(top: Path, *, once: bool) -> Iterator[Contents]:
    """What is in a folder and those below it, by name, then in those that links lead to.

    A link to a folder that holds it is not followed; with ``once`` nor is one to any folder that
    was there already.
    """
    seen = {str(place) for place in Path(os.path.realpath(top)).parents}
    waiting, linked = [(top, frozenset(seen))], deque[tuple[Path, frozenset[str]]]()
    while waiting or linked:
        place, above = waiting.pop() if waiting else linked.popleft()
        real = os.path.realpath(place)
        if real in (seen if once else above):
            continue
        seen.add(real)
        inside = contents(place)
        yield inside
        for folder in reversed(inside.folders):
            (linked if folder.is_symlink() else waiting).append((folder, above | {real}))


def _files(inside: Contents) -> list[Path]:
    """The pictures without pipes and devices, of which reading may never end."""
    # A broken link is a bad picture.
    return [path for path in inside.pictures if path.is_file() or not path.exists()]


def _listed(lines: Iterable[str]) -> list[Path]:
    paths = [line for each in lines if (line := each.rstrip("\r\n"))]
    for path in paths:
        _refuse_url(path)
    if not paths:
        raise UserError(f"{STANDARD_INPUT}: standard input lists no pictures, one path a line")
    return [Path(path) for path in paths]


def _refuse_url(word: str) -> None:
    if _URL.match(word):
        raise UserError(
            f"{shown(word)}: a URL; nothing is fetched here: download it, and give the file"
        )
