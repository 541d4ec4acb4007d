"""YAML as recipes mean it: YAML 1.2's core schema, each key once, and no more than a recipe needs.

PyYAML parses; what its events stand for is decided here, because its own composer reads YAML 1.1
(``010`` is eight, ``on`` is true), lets the last of two equal keys win, and has no limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from adafilter_dist.recipe.scalars import resolve

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
DEEPEST = 30

_TEXT = "tag:yaml.org,2002:str"
# libyaml gives the same events ten times as fast; PyYAML's own parser where it was built without.
_PARSER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_NOT_ALLOWED = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # YAML 1.2, c-printable
)


class YamlError(ValueError):
    """A text that is not YAML, or more than a recipe may hold: one line that names the place."""


class Block(dict[str, Any]):
    """A mapping that knows in which line each of its keys stands."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


@dataclass
class _Anchored:
    """What ``&name`` stands in front of, its nodes, and how deep it is."""

    value: Any
    nodes: int
    height: int


def read_yaml_file(path: Path) -> Any:
    """The content of a YAML file; YamlError where it is none, OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise YamlError(f"larger than {MOST_BYTES >> 20} MB, which no recipe is")
    try:
        return read_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(f"line {line}: not UTF-8") from None


def read_yaml(text: str) -> Any:
    """The content of a YAML text: a Block, a list, or a scalar as :func:`resolve` has it.

    Raises YamlError.
    """
    return read_node(text)[0]


def read_node(text: str) -> tuple[Any, int]:
    """The content of a YAML text, and where in the text it ends; YamlError."""
    match = _NOT_ALLOWED.search(text)
    if match is not None:
        line = text.count("\n", 0, match.start()) + 1
        raise YamlError(f"line {line}: the character U+{ord(match[0]):04X} is not allowed")
    try:
        return _Composer(text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise YamlError(f"{_place(mark)}not YAML: {problem}") from None
    except (yaml.YAMLError, OverflowError) as error:
        raise YamlError(f"not YAML: {' '.join(str(error).split())}") from None


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _end(event: Any) -> int:
    return int(event.end_mark.index)


class _Composer:
    """The events of one text, made into values."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Event] = yaml.parse(text, Loader=_PARSER)
        self._anchors: dict[str, _Anchored | None] = {}  # None while it is being read
        self._nodes = 0
        self._end = 0

    def document(self) -> tuple[Any, int]:
        """The only document's value and the index at which it ends; None for an empty text."""
        self._next(StreamStartEvent)
        event = self._next(DocumentStartEvent, StreamEndEvent)
        if isinstance(event, StreamEndEvent):
            return None, 0
        if event.version not in (None, (1, 2)):
            version = ".".join(map(str, event.version))
            raise YamlError(f"line 1: %YAML {version}: recipes are YAML 1.2; leave that line out")
        value, _ = self._node(self._next(), (), 0)
        end = self._end
        self._next(DocumentEndEvent)
        event = self._next(DocumentStartEvent, StreamEndEvent)
        if isinstance(event, DocumentStartEvent):
            line = _line(event)
            raise YamlError(f"line {line}: a second document begins; a recipe is one")
        return value, end

    def _next(self, *kinds: type[Event]) -> Any:
        try:
            event = next(self._events)
        except ValueError as error:  # escapes like "\UFFFFFFFF" in PyYAML's own parser
            raise YamlError(f"not YAML: {error}") from None
        assert not kinds or isinstance(event, kinds)
        return event

    def _node(self, event: Any, path: tuple[str, ...], depth: int) -> tuple[Any, int]:
        """The value that begins with ``event`` at ``path``, and how many levels it has."""
        line = _line(event)
        self._count(1, line)
        if isinstance(event, AliasEvent):
            self._end = _end(event)
            return self._alias(str(event.anchor), depth, line)
        if depth > DEEPEST:
            raise YamlError(f"line {line}: nested more than {DEEPEST} deep, which no recipe is")
        before = self._nodes
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            self._end = _end(event)
            value, height = self._scalar(event), 0
        elif event.tag is not None:
            raise YamlError(f"line {line}: the tag {event.tag} means nothing in a recipe")
        elif isinstance(event, SequenceStartEvent):
            value, height = self._list(path, depth)
        else:
            value, height = self._block(path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 1 + self._nodes - before, height)
        return value, height

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise YamlError(f"line {line}: more than {MOST_NODES:,} values, which no recipe has")

    def _alias(self, name: str, depth: int, line: int) -> tuple[Any, int]:
        known = self._anchors.get(name)
        if name not in self._anchors:
            raise YamlError(f"line {line}: *{name}: there is no &{name} before it")
        if known is None:
            raise YamlError(f"line {line}: *{name} stands inside of &{name} itself")
        if depth + known.height > DEEPEST:
            raise YamlError(f"line {line}: nested more than {DEEPEST} deep, which no recipe is")
        self._count(known.nodes - 1, line)
        return _copy(known.value), known.height

    def _scalar(self, event: Any) -> Any:
        line = _line(event)
        if event.tag not in (None, _TEXT):
            raise YamlError(
                f"line {line}: the tag {event.tag} means nothing in a recipe; a text is quoted"
            )
        if event.tag is not None or not event.implicit[0]:
            return event.value
        try:
            return resolve(event.value)
        except ValueError as error:
            raise YamlError(f"line {line}: {error}") from None

    def _list(self, path: tuple[str, ...], depth: int) -> tuple[list[Any], int]:
        values, height = [], 0
        while not isinstance(event := self._next(), SequenceEndEvent):
            value, levels = self._node(event, path, depth + 1)
            values.append(value)
            height = max(height, levels + 1)
        self._end = _end(event)
        return values, height

    def _block(self, path: tuple[str, ...], depth: int) -> tuple[Block, int]:
        block, height = Block(), 0
        while not isinstance(event := self._next(), MappingEndEvent):
            key, line = self._key(event), _line(event)
            inside = (*path, key)
            if key in block:
                raise YamlError(_twice(".".join(inside), block.lines[key], line))
            block.lines[key] = line
            block[key], levels = self._node(self._next(), inside, depth + 1)
            height = max(height, levels + 1)
        self._end = _end(event)
        return block, height

    def _key(self, event: Any) -> str:
        """A key is the text that stands there: ``1`` and ``on`` too."""
        line = _line(event)
        self._count(1, line)
        if not isinstance(event, ScalarEvent) or event.tag not in (None, _TEXT):
            raise YamlError(f"line {line}: a key is a text")
        if event.value == "<<" and event.implicit[0]:
            raise YamlError(
                f"line {line}: <<: YAML 1.2 merges nothing; base: NAME starts from another recipe"
            )
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(event.value, 1, 0)
        return str(event.value)


def _twice(key: str, first: int, second: int) -> str:
    where = f"in lines {first} and {second}" if first != second else f"twice in line {first}"
    return f"{key} stands {where}; keep one of them"


def _copy(value: Any) -> Any:
    """Lists and blocks anew: what an alias names may be changed in one place and not the other."""
    if isinstance(value, Block):
        block = Block()
        block.lines = dict(value.lines)
        block.update({key: _copy(inner) for key, inner in value.items()})
        return block
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def twice_by_dots(block: Block) -> str:
    """What is wrong with a file that sets a key both as ``a.b: 1`` and in ``a:``; empty if none."""
    seen: dict[str, int] = {}
    for key, line in _leaves(block, ""):
        if key in seen:
            return _twice(key, seen[key], line)
        seen[key] = line
    return ""


def _leaves(block: Block, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in block.items():
        if isinstance(value, Block) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", block.lines[key]
