"""What a plain text of YAML stands for: the core schema of YAML 1.2, as JSON has its types.

``yes``, ``on``, ``1_000``, ``1:30`` and ``2024-01-01`` are texts, ``010`` is ten, ``1e-3`` is a
number.
"""

from __future__ import annotations

import re
from typing import Any

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_REAL = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)"
)
# Longer ones are no number of a recipe, and slow to convert.
_LONGEST = 300


class Integer(int):
    """An integer that knows how it was written: a key that takes a text takes that."""

    written: str


class Real(float):
    """A real number that knows how it was written."""

    written: str


def resolve(text: str) -> Any:
    """None, a bool, an Integer, a Real, or the text itself, by YAML 1.2's core schema.

    Raises ValueError for a number of more than 300 characters.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    kind = Integer if _INTEGER.fullmatch(text) else Real if _REAL.fullmatch(text) else None
    if kind is None:
        return text
    if len(text) > _LONGEST:
        raise ValueError(f"a number of {len(text)} characters")
    number: Integer | Real
    if kind is Integer:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = Integer(text[2:] if base != 10 else text, base)
    else:
        number = Real(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    number.written = text
    return number


def plain(value: Any) -> Any:
    """``value`` of ordinary Python types, through lists and mappings."""
    if isinstance(value, Integer):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value
