"""From words to a recipe: a file, ``key=value`` over it, and errors that help."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from adafilter_dist.errors import UserError, shown
from adafilter_dist.recipe.comma_list import split_list
from adafilter_dist.recipe.find import find_recipe, recipe_names
from adafilter_dist.recipe.find import shipped_recipes as shipped_recipes
from adafilter_dist.recipe.hints import wrong_words
from adafilter_dist.recipe.keys import means_recipe, meant
from adafilter_dist.recipe.mistakes import limited, lines_of, unprintable_texts
from adafilter_dist.recipe.scalars import resolve
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.tree import put_words, read_tree
from adafilter_dist.recipe.word import as_word, read_word
from adafilter_dist.recipe.yaml_loader import YamlError
from adafilter_dist.recipe.younger_keys import filled_in


def load_recipe(words: Sequence[str]) -> Recipe:
    """The recipe that ``recipe=NAME key=value ...`` describes, checked and frozen.

    ``over=OTHER`` puts the recipe over another base than its own. Of a key that stands there twice
    the last value holds. Raises UserError with one line per mistake, all at once.
    """
    named: list[str] = []
    base: str | None = None
    overrides: list[tuple[str, Any]] = []
    mistakes = wrong_words(words)
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or key.startswith("-"):
            continue
        if key == "recipe":
            named.append(text)
        elif key != key.strip() or means_recipe(key):
            right = f"{meant(key) or key.strip() or 'KEY'}={text.strip(' ,;')}"
            mistakes.append(f"{shown(word)}: did you mean {shown(shlex.quote(right))}?")
        elif key == "launch" and text and text[0] not in "@{":
            mistakes.append(
                f"{shown(word)}: a site file is named as launch=@{shown(text)}, a key as "
                "launch.KEY="
            )
        elif len(split_list(text)) > 1:
            mistakes.append(
                f"{shown(word)}: a comma list is a sweep, and this command runs one recipe; write "
                f"a list as {shown(key)}=[{shown(text)}] or a text as {_as_text(key, text)}"
            )
        elif key == "over":
            base = text
        else:
            try:
                overrides.append(
                    (key, text if key == "launch" and text[:1] == "@" else read_word(text))
                )
            except YamlError as error:
                mistakes.append(
                    f"{shown(word)}: {shown(str(error))}; as a text it is {_as_text(key, text)}"
                )
    if len(set(named)) > 1:
        mistakes.append(f"recipe={shown(named[0])} and recipe={shown(named[-1])}: give one of them")
    if not named and not any("recipe=" in line for line in mistakes):
        mistakes.append(f"which recipe? add recipe=NAME, one of: {', '.join(recipe_names())}")
    if mistakes or not named:
        raise UserError("\n".join(limited(mistakes)))
    tree = filled_in(read_tree(find_recipe(named[0]), base=base))
    put_words(tree, overrides)
    return _validated(tree)


def _as_text(key: str, text: str) -> str:
    return shown(shlex.quote(f"{key}={as_word(text)}"))


def _validated(tree: Mapping[str, Any]) -> Recipe:
    mistakes = unprintable_texts(tree)
    if mistakes:
        raise UserError("\n".join(limited(mistakes)))
    try:
        return Recipe.model_validate(_without_empty(tree))
    except ValidationError as error:
        raise UserError("\n".join(lines_of(error))) from None


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``section: null`` means its defaults; a null leaf stays and is checked by its type."""
    return {k: v for k, v in tree.items() if v is not None or k not in Recipe.model_fields}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which is no text to YAML 1.2."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        try:
            style = None if isinstance(resolve(text), str) else "'"
        except ValueError:
            style = "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that :func:`load_recipe` reads back to the same recipe."""
    tree = recipe.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=100)
