"""Texts and names of files as one can print them: Linux allows any bytes in a name."""

from __future__ import annotations

from pathlib import Path


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
