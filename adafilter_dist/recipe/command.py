"""The command line that a recipe came from, to name it in messages."""

from __future__ import annotations

import shlex
from typing import Any

from adafilter_dist.errors import UserError
from adafilter_dist.recipe.find import recipe_names
from adafilter_dist.recipe.load import load_recipe
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.word import as_word

# What `prepare` looks at; the rest of a recipe may differ.
_LOOKED_AT = {
    "data": {
        *("name", "root", "prepared", "csv", "download", "classes", "on_bad", "split_seed"),
        *("train_per_class", "test_per_class", "test_fraction", "test_split", "verify"),
        *("join_validation", "draw", "stored_size", "stored_format", "jpeg_quality"),
    },
    "model": {"name", "weights"},
}


def prepare_line(recipe: Recipe) -> str:
    """``adafilter prepare recipe=NAME key=value ...`` that prepares what this recipe needs.

    NAME is the recipe's own, also in a folder of recipes, or the data set's where that is no
    recipe's name (``name=birds``).
    """
    names = [recipe.name, *(n for n in recipe_names() if n.endswith(f"/{recipe.name}"))]
    for name in (*names, recipe.data.name, recipe.data.name.replace("_", "-")):
        try:
            shipped = _flat(load_recipe([f"recipe={name}"]))
        except UserError:
            continue
        words = [
            f"{key}={as_word(value)}"
            for key, value in _flat(recipe).items()
            if shipped.get(key) != value
        ]
        return shlex.join(["adafilter", "prepare", f"recipe={name}", *words])
    return "adafilter prepare recipe=..., with the recipe and the words of this command"


def _flat(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json", include=_LOOKED_AT)
    return {f"{part}.{key}": value for part, keys in tree.items() for key, value in keys.items()}
