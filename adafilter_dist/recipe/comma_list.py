"""Comma lists: which commas part the values of a sweep, and which belong to a value."""

from __future__ import annotations

_CLOSING = {"[": "]", "{": "}"}


def split_list(text: str) -> list[str]:
    """The parts of a comma list; a comma in quotes or brackets is no part's end.

    A text without any other comma is one part.
    """
    parts, begin, at = [], 0, 0
    open_brackets: list[str] = []
    while at < len(text):
        char = text[at]
        if char in "\"'" and (end := text.find(char, at + 1)) > 0:
            at = end
        elif char in _CLOSING and _closes(text, at):
            open_brackets.append(_CLOSING[char])
        elif open_brackets and char == open_brackets[-1]:
            open_brackets.pop()
        elif char == "," and not open_brackets:
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
    return [*parts, text[begin:]]


def _closes(text: str, at: int) -> bool:
    """Whether what is opened at ``at`` is closed again; else the bracket is a character."""
    depth = 0
    for char in text[at:]:
        depth += (char == text[at]) - (char == _CLOSING[text[at]])
        if not depth:
            return True
    return False
