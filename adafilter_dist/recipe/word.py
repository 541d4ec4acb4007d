"""A value on the command line: what stands behind the first = of ``key=value``.

A text is taken as it stands, blanks and ``#``, ``:``, ``&`` included, and is null, a bool or a
number where YAML 1.2 says so. A list or mapping is YAML, ``[a, b]`` or ``{a: b}``; so is a text in
quotes, which is how a text is written that would be something else.
"""

from __future__ import annotations

import json
from typing import Any

from adafilter_dist.recipe.scalars import plain, resolve
from adafilter_dist.recipe.yaml_loader import YamlError, read_node

_KINDS = {"[": "a list", "{": "a mapping", '"': "a text in quotes", "'": "a text in quotes"}


def read_word(text: str) -> Any:
    """The value that ``text`` stands for; YamlError where it begins as one but is none."""
    kind = _KINDS.get(text[:1])
    try:
        if kind is None:
            return resolve(text)
        value, end = read_node(text)
    except YamlError as error:
        problem = str(error).removeprefix("line 1, ")
        if "<document start>" in problem:
            problem = "more stands behind its end"
        raise YamlError(f"begins like {kind}, but {problem}") from None
    except ValueError as error:
        raise YamlError(str(error)) from None
    if text[end:].strip():
        raise YamlError(f"begins like {kind}, but more stands behind its end")
    return value


def as_word(value: Any) -> str:
    """The text that :func:`read_word` reads as ``value``, and that is no comma list."""
    if isinstance(value, str):
        try:
            as_it_is = isinstance(resolve(value), str) and value[:1] not in _KINDS
        except ValueError:
            as_it_is = False
        return value if as_it_is and "," not in value and value.isprintable() else _quoted(value)
    return _flow(value)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_flow(key)}:{_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_flow, value)) + "]"
    return _escaped(value, '"[]{}') if isinstance(value, str) else json.dumps(plain(value))


def _quoted(text: str) -> str:
    return f"'{text}'" if text.isprintable() and "'" not in text else _escaped(text, '"')


def _escaped(text: str, never: str) -> str:
    """``text`` in double quotes; comma lists are parted by brackets, quoted or not."""
    return '"' + "".join(_character(char, never) for char in text) + '"'


def _character(char: str, never: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable() and char not in never:
        return char
    code = ord(char)
    width, letter = (2, "x") if code < 0x100 else (4, "u") if code < 0x10000 else (8, "U")
    return f"\\{letter}{code:0{width}x}"
