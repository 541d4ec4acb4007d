"""What is wrong with a recipe, a line a mistake: key, value, what is allowed, the nearest."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adafilter_dist.errors import closest, nearest, printable, shown
from adafilter_dist.recipe.keys import meant, sections_in
from adafilter_dist.recipe.scalars import Integer, Real
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.tree import KINDS
from adafilter_dist.recipe.word import as_word

_MOST = 20
_LONGEST = 600
_TYPES = ("str", "int", "float", "bool")  # members of a union, in pydantic's words
# Where a text may have several lines, or is somebody else's.
_FREE = ("launch.setup", "engine.config")


def lines_of(error: ValidationError) -> list[str]:
    """A line for each key that is wrong, 20 at most."""
    by_key: dict[str, str] = {}
    for item in error.errors(include_url=False):
        key = ".".join(map(str, item["loc"]))
        # A value that is neither of two types has a mistake for each.
        stem = re.sub(rf"\.({'|'.join(_TYPES)})$", "", key)
        if len(by_key) < _MOST or stem in by_key:
            by_key.setdefault(stem, _line(item))
    left = len({str(item["loc"]) for item in error.errors(include_url=False)}) - len(by_key)
    return limited([line for lines in by_key.values() for line in lines.split("\n")], left)


def limited(lines: list[str], left: int = 0) -> list[str]:
    """At most 20 lines, and how many more mistakes there are."""
    left += max(0, len(lines) - _MOST)
    return [printable(line) for line in lines[:_MOST]] + (
        [f"and {left} more mistakes"] if left > 0 and len(lines) >= _MOST else []
    )


def unprintable_texts(tree: Mapping[str, Any]) -> list[str]:
    """A line for each text with control characters in it, or with what is no Unicode."""
    return [
        f"{shown(key)}={shown(text)}: holds a character that cannot be printed"
        for key, text in _texts(tree, "")
        if not _is_printable(re.sub(r"[\n\t]", "", text) if key.startswith(_FREE) else text)
    ]


def _is_printable(text: str) -> bool:
    return not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            inside = f"{key}.{name}" if key else name
            yield inside, name
            yield from _texts(inner, inside)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def written(value: Any) -> str:
    """A value as it stands in the recipe, in one line."""
    if isinstance(value, Integer | Real):
        return value.written
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, str):
        return shown(value)
    try:
        return shown(as_word(value))
    except (TypeError, ValueError):
        return shown(str(value))


def _section(path: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """The key as the user wrote it (union tags left out) and the sections it lies in."""
    models: list[type[BaseModel]] = [Recipe]
    words: list[str] = []
    for part in path:
        word = str(part)
        tagged = [
            m for m in models if "name" in m.model_fields and m.model_fields["name"].default == word
        ]
        if tagged and len(models) > 1:
            models = tagged
            continue
        words.append(word)
        inner = [
            section
            for model in models
            if word in model.model_fields
            for section in sections_in(model.model_fields[word].annotation)
        ]
        if inner:
            models = inner
    return words, models


def _of_another_kind(words: Sequence[str]) -> str:
    """`` (a key of engine=deepspeed)`` where another kind of the section has the key."""
    section, _, key = ".".join(words).partition(".")
    if section not in KINDS:
        return ""
    for model in sections_in(Recipe.model_fields[section].annotation):
        if key in model.model_fields:
            return f" (a key of {section}={model.model_fields['name'].default})"
    return ""


def _unknown(words: Sequence[str], models: Sequence[type[BaseModel]]) -> str:
    key = ".".join(words)
    allowed = sorted({name for model in models for name in model.model_fields})
    full = meant(words[-1])
    elsewhere = f" (did you mean {full}?)" if full else ""
    same_name = all(name.endswith(f".{words[-1]}") for name in full.split(" or "))
    closest_key = closest(words[-1], allowed, cutoff=0.7)
    hint = _of_another_kind(words) or (elsewhere if same_name or not closest_key else "")
    hint = hint or nearest(words[-1], allowed)
    return f"{shown(key)}: unknown key{hint}; allowed: {', '.join(allowed)}"


def _line(item: ErrorDetails) -> str:
    words, models = _section(item["loc"])
    if len(words) > 1 and words[-1] in _TYPES:
        words.pop()
    key = shown(".".join(words))
    value = item["input"]
    if item["type"] == "extra_forbidden":
        return _unknown(words, models)
    if item["type"] == "missing":
        if item["loc"] and isinstance(item["loc"][-1], int):
            return f"{key.rpartition('.')[0]}: has too few values"
        return f"{key}: missing; the recipe must say it"
    message = printable(item["msg"].removeprefix("Value error, "))[:_LONGEST]
    if item["type"] == "union_tag_invalid":
        context = item.get("ctx", {})
        allowed = [w.strip(" '") for w in str(context.get("expected_tags", "")).split(",")]
        tag = str(context.get("tag", ""))
        return (
            f"{key}.name={shown(tag)}: not known{nearest(tag, allowed)}; "
            f"allowed: {', '.join(allowed)}"
        )
    if item["type"] == "literal_error":
        expected = str(item.get("ctx", {}).get("expected", ""))
        allowed = re.findall(r"[^',\s]+", expected.replace(" or ", ", "))
        text = written(value)
        return f"{key}={text}: not known{nearest(text, allowed)}; allowed: {', '.join(allowed)}"
    if not key or (item["type"] == "value_error" and isinstance(value, dict)):
        lines = item["msg"].removeprefix("Value error, ").split("\n")
        message = "\n".join(printable(line)[:_LONGEST] for line in lines)
        return f"{key}: {message}" if key else message
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"{key}={written(value)}: a section of keys; write {key}.KEY=VALUE"
    if item["type"] in ("list_type", "tuple_type"):
        message = "must be a list, as in [a, b]"
    if item["type"] == "string_type":
        quotes = "" if isinstance(value, list | dict) else "; write it in quotes"
        message = f"must be a text{quotes}"
    return f"{key}={written(value)}: {message[:1].lower()}{message[1:]}"
