"""Folders of pictures, walked through links but never in circles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adafilter_dist.errors import UserError, printable
from adafilter_dist.pictures.formats import is_picture

_Identity = tuple[int, int]


@dataclass
class Contents:
    """What lies directly in a folder; hidden things are left out, names are sorted."""

    folders: list[Path]
    pictures: list[Path]
    others: list[str]


def contents(folder: Path) -> Contents:
    """Look into a folder; UserError where that is not allowed."""
    folders: list[Path] = []
    pictures: list[Path] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                path = folder / entry.name
                if _is_folder(entry):
                    folders.append(path)
                elif is_picture(entry.name):
                    pictures.append(path)
                else:
                    others.append(entry.name)
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be read ({error.strerror})") from None
    return Contents(folders, pictures, others)


def _has_picture(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_picture(entry.name) and not _is_folder(entry) for entry in entries)
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be read ({error.strerror})") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@dataclass
class Walk:
    """Walks below one root. It remembers real folders, and notes those that links lead to again."""

    root: Path
    loops: set[Path] = field(default_factory=set)
    twins: list[tuple[Path, Path]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    _above: list[_Identity] = field(default_factory=list)
    _known: dict[_Identity, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        top = Path(os.path.realpath(self.root))
        self._above = [_identity(folder) for folder in (top, *top.parents)]

    def pictures(self, folder: Path) -> list[Path]:
        """All pictures below a class folder, sorted by path; each real folder counts once.

        Folders that another class holds too are taken, and kept in ``twins``.
        """
        paths: list[Path] = []
        for place, inside in self._folders(folder, note=True):
            identity = _identity(place)
            if identity in self._known:
                self.twins.append((place, self._known[identity]))
            self._known.setdefault(identity, place)
            paths += inside.pictures
            self.others += inside.others
        return sorted(paths)

    def leads_back(self, folder: Path) -> bool:
        """Whether a folder is one of those that hold it; then it is noted."""
        back = _identity(folder) in self._chain(folder)
        if back:
            self.loops.add(folder)
        return back

    def has_pictures(self, folder: Path) -> bool:
        """Whether there is a picture anywhere below."""
        return _has_picture(folder) or any(inside.pictures for _, inside in self._folders(folder))

    def notes(self) -> list[str]:
        """One line a kind: links that lead back, and folders that are reached twice."""
        lines = []
        if self.loops:
            lines.append(
                f"{_count(len(self.loops), 'link leads', 'links lead')} back to a folder that "
                f"holds the link, and none is followed: {self._name(min(self.loops))}"
            )
        if self.twins:
            again, first = self.twins[0]
            lines.append(
                f"{_count(len(self.twins), 'folder is', 'folders are')} reached twice by links: "
                f"{self._name(again)} is {self._name(first)}"
            )
        return lines

    def _folders(self, top: Path, *, note: bool = False) -> Iterator[tuple[Path, Contents]]:
        """``top`` and the folders below it, each real one once, by its own name where it has one.

        Folders that hold the link to them are left out; with ``note`` they are kept in ``loops``.
        """
        waiting: list[tuple[Path, tuple[_Identity, ...]]] = [(top, self._chain(top))]
        linked: list[tuple[Path, tuple[_Identity, ...]]] = []
        seen: dict[_Identity, Path] = {}
        while waiting or linked:
            folder, chain = waiting.pop() if waiting else linked.pop()
            identity = _identity(folder)
            if identity in chain:
                if note:
                    self.loops.add(folder)
                continue
            if identity in seen:
                if note:
                    self.twins.append((folder, seen[identity]))
                continue
            seen[identity] = folder
            inside = contents(folder)
            yield folder, inside
            for path in reversed(inside.folders):
                below = linked if path.is_symlink() else waiting
                below.append((path, (*chain, identity)))

    def _chain(self, folder: Path) -> tuple[_Identity, ...]:
        """The real folders that hold a folder below the root."""
        between = [above for above in folder.parents if above.is_relative_to(self.root)]
        return (*self._above, *(_identity(above) for above in between))

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.root))


def _identity(folder: Path) -> _Identity:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be read ({error.strerror})") from None
    return status.st_dev, status.st_ino


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
