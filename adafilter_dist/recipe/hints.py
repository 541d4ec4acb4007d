"""Words that are no ``key=value``: which word was meant."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from adafilter_dist.errors import shown
from adafilter_dist.recipe.find import recipe_names
from adafilter_dist.recipe.keys import all_keys, means_recipe, meant

_EXPECTED = "expected key=value, e.g. recipe=demo or optim.lr=0.01"


def wrong_words(words: Sequence[str]) -> list[str]:
    """A line for each of ``words`` that has no key and value, with the words that were meant."""
    lines: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, sign, value = word.partition("=")
        if key.startswith("-"):
            if not sign and rest and "=" not in rest[0] and not rest[0].startswith("-"):
                value = rest.pop(0)
            lines.append(option_meant(key, value))
        elif sign and key:
            continue
        elif sign:
            lines.append(f"{shown(word)}: {_EXPECTED}; no blanks stand beside the =")
        elif rest and rest[0].startswith("="):
            value = rest.pop(0)[1:] or (rest.pop(0) if rest else "")
            lines.append(f"{shown(word)}: no blanks stand beside the =: {_words(word, value)}")
        else:
            lines.append(_bare(word, rest))
    return lines


def option_meant(option: str, value: str) -> str:
    """``--epochs 3: settings are written as train.epochs=3``."""
    text = shown(f"{option} {value}".strip())
    if meant(option):
        return f"{text}: settings are words, not options: {_words(option, value)}"
    return f"{text}: no such option; {_EXPECTED}"


def _bare(word: str, rest: list[str]) -> str:
    """What was meant by a word without an =; takes what belongs to it from ``rest``."""
    bare = word.strip(" ,;:")
    if bare in recipe_names() or bare.endswith((".yaml", ".yml")):
        return f"{shown(word)}: did you mean {shown(shlex.quote(f'recipe={bare}'))}?"
    key, colon, value = word.partition(":")
    if meant(key) in all_keys() and (colon or rest):
        if rest and not value and "=" not in rest[0] and not rest[0].startswith("-"):
            value = rest.pop(0)
            word = f"{word} {value}"
        return f"{shown(word)}: did you mean {_words(key, value)}?"
    return f"{shown(word)}: {_EXPECTED}"


def _words(word: str, value: str) -> str:
    """``key=value`` with the key that ``word`` stands for."""
    text = value.strip(" ,;") or "..."
    return " or ".join(
        shown(f"{key}=..." if text == "..." else shlex.quote(f"{key}={text}"))
        for key in (meant(word) or word).split(" or ")
    )


def no_run(word: str, rest: Sequence[str]) -> str:
    """What to say where a run's folder is expected and ``word`` is none, empty if it may be one."""
    if Path(word).expanduser().exists():
        return ""
    if "=" in word:
        return (
            f"{shown(word)}: expected a run's folder, as in runs/demo/1a2b3c4d; by its words a run "
            "goes on with adafilter train recipe=... again"
        )
    bare = next((name for name in (word, *rest[:1]) if name in recipe_names()), "")
    if bare and (bare == word or means_recipe(word)):
        return (
            f"{shown(word)}: expected a run's folder, as in runs/demo/1a2b3c4d (recipe={bare} "
            "names a recipe)"
        )
    return ""
