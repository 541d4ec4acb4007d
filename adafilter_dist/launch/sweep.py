"""Sweeps: ``optim.lr=0.01,0.02 seed=0,1`` means every combination, each a run of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adafilter_dist.errors import UserError
from adafilter_dist.recipe.comma_list import split_list
from adafilter_dist.recipe.scalars import plain
from adafilter_dist.recipe.word import read_word
from adafilter_dist.recipe.yaml_loader import YamlError

_FIXED = ("recipe", "run_dir", "resume", "name")


@dataclass(frozen=True)
class Member:
    """One combination: the words of its recipe, and the values of the swept keys."""

    words: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)


def expand(words: Sequence[str]) -> list[Member]:
    """The members of a sweep in the order of the words, the last key changing fastest.

    Without a comma list it is one member without values. Raises UserError for keys that make no
    runs of their own, and for a value given twice.
    """
    choices: list[list[str]] = []
    keys: list[str] = []
    mistakes = []
    times = Counter(word.partition("=")[0] for word in words)
    for word in words:
        key, sign, text = word.partition("=")
        parts = split_list(text) if sign else [text]
        if len(parts) > 1:  # blanks beside a comma belong to no value
            parts = [part.strip() for part in parts]
        if len(parts) > 1:
            if key in _FIXED or key.partition(".")[0] == "launch":
                mistakes.append(
                    f"{word}: {key} cannot be swept; submit one after the other, or write a text "
                    f"with a comma in it as {key}='\"{text}\"'"
                )
            elif "" in parts or len(set(parts)) < len(parts):
                mistakes.append(f"{word}: a value is empty or stands there twice")
            elif times[key] > 1:
                mistakes.append(f"{word}: {key} is given {times[key]} times")
            else:
                mistakes += [f"{key}={part}: not a YAML value" for part in parts if _broken(part)]
            keys.append(key)
        choices.append([f"{key}={part}" for part in parts] if sign else [word])
    if mistakes:
        raise UserError("\n".join(mistakes))
    return [_member(combination, keys) for combination in itertools.product(*choices)]


def _broken(text: str) -> bool:
    try:
        read_word(text)
    except YamlError:
        return True
    return False


def _member(words: Sequence[str], keys: Sequence[str]) -> Member:
    values = dict(word.partition("=")[::2] for word in words)
    return Member(tuple(words), {key: plain(read_word(values[key])) for key in keys})
