"""How a word ``key=value`` of a recipe may go on, for TAB in a shell."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from adafilter_dist.recipe.find import recipe_names
from adafilter_dist.recipe.keys import fields_of, sections_in
from adafilter_dist.recipe.schema import Recipe

_RECIPES = {
    "recipe": "the recipe to start from: a name or a file",
    "over": "a second recipe, whose keys the first one's are laid over",
}


def next_words(prefix: str) -> dict[str, str]:
    """The words that begin with ``prefix``: keys with their meaning, or a key's values.

    Values are those of a choice; what is a number, a text or a path has none (``takes_path``).
    """
    key, sign, _ = prefix.partition("=")
    if sign:
        words = dict.fromkeys((f"{key}={value}" for value in _values(key)), "")
    else:
        fields = {key: field.description or "" for key, field in _settable().items()}
        words = {f"{key}=": meaning for key, meaning in {**_RECIPES, **fields}.items()}
    return {word: meaning for word, meaning in words.items() if word.startswith(prefix)}


def takes_path(key: str) -> bool:
    """Whether the value of ``key`` is a path, or may be one."""
    field = _settable().get(key)
    return key in _RECIPES or (field is not None and Path in set(_kinds(field.annotation)))


@cache
def _settable() -> dict[str, FieldInfo]:
    """The keys that take a value, each once: ``optim.lr``, and ``method`` but not ``optim``."""
    fields: dict[str, FieldInfo] = {}
    for key, field in fields_of(Recipe):
        if len(list(sections_in(field.annotation))) != 1:
            fields.setdefault(key, field)
    return fields


def _values(key: str) -> Iterator[str]:
    if key in _RECIPES:
        yield from recipe_names()
        return
    section = key.removesuffix(".name")  # method.name=finetune is method=finetune
    for name in dict.fromkeys((key, section)):
        field = _settable().get(name)
        models = list(sections_in(field.annotation)) if field else []
        if models:
            yield from (str(model.model_fields["name"].default) for model in models)
            return
    field = _settable().get(key)
    for kind in _kinds(field.annotation) if field else ():
        if kind is bool:
            yield from ("true", "false")
        elif kind is type(None):
            yield "null"
        elif isinstance(kind, str):
            yield kind


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in a union, and the values of choices."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from map(str, typing.get_args(annotation))
    elif parts := typing.get_args(annotation):
        if typing.get_origin(annotation) not in (list, tuple, dict):
            for part in parts:
                yield from _kinds(part)
    else:
        yield annotation
