"""What a page is made of: sections of tables, figures, pictures and notes.

All texts are plain; the template escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

Spec = dict[str, Any]
"""A chart in Vega-Lite's JSON."""


@dataclass(frozen=True)
class Cell:
    """A text, the number that it is sorted by, and a bar from 0 to 1 behind it."""

    text: str
    value: float | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Column:
    """A column's title; ``number``: right-aligned, sorted by value, the largest first."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A sortable table. ``folded``: behind a line that opens it; ``shown`` rows, then a button."""

    kind: ClassVar[str] = "table"
    id: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    folded: bool = False
    shown: int = 15


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows, in words, and its ``height`` in pixels before it is drawn."""

    kind: ClassVar[str] = "figure"
    id: str
    title: str
    spec: Spec
    caption: str
    height: int = 260
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A small picture; ``source`` is a data URI."""

    source: str
    width: int
    height: int
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    kind: ClassVar[str] = "gallery"
    id: str
    title: str
    pictures: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """What is missing, and the command that brings it; or what to keep in mind."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Text:
    """A text as it is in a file."""

    kind: ClassVar[str] = "text"
    title: str
    text: str


Block = Table | Figure | Gallery | Note | Text


@dataclass(frozen=True)
class Section:
    """A part of the page with its entry in the list of contents."""

    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""

    def balanced(self) -> list[Block]:
        """The blocks, of which a narrow figure that would be alone in its row is wide."""
        placed: list[Block] = []
        open_row = False
        for block in [*self.blocks, None]:
            narrow = isinstance(block, Figure) and not block.wide
            if open_row and not narrow:
                alone = placed[-1]
                assert isinstance(alone, Figure)
                placed[-1] = replace(alone, wide=True)
            open_row = narrow and not open_row
            if block is not None:
                placed.append(block)
        return placed


@dataclass(frozen=True)
class Fact:
    """A number to read first: what it is, the number, its interval or remark."""

    title: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    footer: str
    notes: Sequence[Note] = field(default_factory=list)
