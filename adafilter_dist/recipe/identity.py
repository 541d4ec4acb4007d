"""Run identity: the same words are the same run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from adafilter_dist.recipe.schema import Recipe

# Where things lie and who reads them does not change the numbers.
_DATA_PLACES = {"root", "prepared", "download", "loader", "num_workers", "csv"}
# Nor does how often the validation set is looked at.
_TRAIN_EXTRA = {"evaluate_every"}


def numbers_of(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that changes the numbers, as plain JSON types.

    Covers data, augment, model, method, optim, ema, train, seed. An image folder has no name of
    its own, so for it the place of the pictures counts.
    """
    places = _DATA_PLACES - ({"root", "csv"} if recipe.data.name == "imagefolder" else set())
    return recipe.model_dump(
        mode="json",
        include={"data", "augment", "model", "method", "optim", "ema", "train", "seed"},
        exclude={"data": places, "train": _TRAIN_EXTRA},
    )


def run_hash(recipe: Recipe) -> str:
    """8 hex digits that name the run."""
    text = json.dumps(numbers_of(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_dir(recipe: Recipe) -> Path:
    """The run folder: ``recipe.run_dir``, else runs/<name>/<run hash>."""
    return recipe.run_dir or Path("runs") / recipe.name / run_hash(recipe)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys that change the numbers and differ, as ``key: old -> new``."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        items: dict[str, Any] = {}
        for key, value in tree.items():
            items |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return items

    a, b = flat(numbers_of(old)), flat(numbers_of(new))
    return [
        f"{key}: {a.get(key)} -> {b.get(key)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
