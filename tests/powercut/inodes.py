"""Files and folders of the model, each with what is durable and what is pending."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Change:
    """To the data of a file: a size, and bytes that begin somewhere."""

    size: int | None = None
    offset: int = 0
    data: bytes = b""
    grow_only: bool = False

    def applied(self, content: bytes) -> bytes:
        if self.size is not None:
            kept = content if self.grow_only else content[: self.size]
            return kept.ljust(self.size, b"\0")
        padded = content.ljust(self.offset, b"\0") if self.data else content
        return padded[: self.offset] + self.data + padded[self.offset + len(self.data) :]

    def without_data(self, content: bytes) -> bytes:
        """The size arrived, the bytes did not."""
        if self.size is not None:
            return self.applied(content)
        return content.ljust(self.offset + len(self.data), b"\0")

    def half(self) -> Change:
        return Change(offset=self.offset, data=self.data[: len(self.data) // 2])


@dataclass
class File:
    """An inode with data."""

    durable: bytes = b""
    now: bytes = b""
    pending: list[Change] = field(default_factory=list)
    _known: list[bytes] | None = None

    def change(self, change: Change) -> None:
        self.now = change.applied(self.now)
        self.pending.append(change)
        self._known = None

    def settle(self) -> None:
        """All that is pending arrives."""
        self.durable, self.pending, self._known = self.now, [], None

    def outcomes(self) -> list[bytes]:
        """Every content that a power cut may leave: nothing of it first, all of it second."""
        if self._known is None:
            self._known = self._outcomes()
        return self._known

    def _outcomes(self) -> list[bytes]:
        others = []
        content = zeros = self.durable
        for change in self.pending:
            others += [content, change.half().applied(content)] if change.data else [content]
            content, zeros = change.applied(content), change.without_data(zeros)
        others = list(dict.fromkeys([*others, zeros]))
        whole = (self.durable, self.now)
        return [*whole, *(content for content in others if content not in whole)]


Entries = dict[str, "File | Folder"]


@dataclass
class Folder:
    """An inode with entries; each pending item sets some of them (None: removes)."""

    durable: Entries = field(default_factory=dict)
    now: Entries = field(default_factory=dict)
    pending: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, item: dict[str, File | Folder | None]) -> None:
        self.now = applied(self.now, item)
        self.pending.append(item)

    def settle(self) -> None:
        """All that is pending arrives."""
        self.durable, self.pending = self.now, []


def applied(entries: Entries, item: Mapping[str, File | Folder | None]) -> Entries:
    changed: dict[str, File | Folder | None] = {**entries, **item}
    return {name: inode for name, inode in changed.items() if inode is not None}
