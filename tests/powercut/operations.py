"""What programs do to files and folders, as far as the model of the disk knows it."""

from __future__ import annotations

from dataclasses import dataclass

Descriptor = tuple[str, int]  # the process, and its number there


class TraceError(Exception):
    """A trace that the model cannot follow, and the call in question."""


@dataclass(frozen=True)
class Operation:
    """One call that succeeded. Paths are absolute; a descriptor is that of one process."""


@dataclass(frozen=True)
class Open(Operation):
    path: str
    descriptor: Descriptor
    create: bool
    truncate: bool
    append: bool


@dataclass(frozen=True)
class Write(Operation):
    """Bytes at ``offset``; None: where the descriptor stands, which moves on."""

    path: str
    descriptor: Descriptor
    data: bytes
    offset: int | None


@dataclass(frozen=True)
class Copy(Operation):
    """``size`` bytes within the folder, from ``begin`` of ``source`` to where ``path`` stands."""

    source: str
    begin: int
    path: str
    descriptor: Descriptor
    size: int


@dataclass(frozen=True)
class Seek(Operation):
    path: str
    descriptor: Descriptor
    position: int


@dataclass(frozen=True)
class Truncate(Operation):
    """To ``size`` bytes; with ``grow_only`` never fewer than there are (fallocate)."""

    path: str
    size: int
    grow_only: bool = False


@dataclass(frozen=True)
class Sync(Operation):
    """fsync or fdatasync of a file or a folder; ``lines`` of the program that asked for it."""

    path: str
    lines: str = ""


@dataclass(frozen=True)
class Rename(Operation):
    old: str
    new: str


@dataclass(frozen=True)
class Link(Operation):
    old: str
    new: str


@dataclass(frozen=True)
class Unlink(Operation):
    """Of a file, or of an empty folder."""

    path: str


@dataclass(frozen=True)
class MakeFolder(Operation):
    path: str


@dataclass(frozen=True)
class Duplicate(Operation):
    """Another descriptor of the same open file."""

    path: str


@dataclass(frozen=True)
class Close(Operation):
    descriptor: Descriptor


@dataclass(frozen=True)
class Said(Operation):
    """Written to stdout, a pipe: from here on others rely on it."""

    text: str
