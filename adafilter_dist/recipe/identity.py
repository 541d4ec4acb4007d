"""Run identity: the same words are the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.training import Optim
from adafilter_dist.recipe.younger_keys import without_younger

# Where things lie and who reads them does not change the numbers.
_DATA_PLACES = {
    *("root", "prepared", "download", "loader", "num_workers", "csv", "stage_to", "verify"),
}
# Nor does how often the validation set is looked at, nor how many micro-batches share a forward:
# statistics, penalties and draws are those of each, so rounding is all that differs, as between
# numbers of ranks.
# The same goes for who computes them.
_TRAIN_EXTRA = {"evaluate_every", "micro_batches_per_forward", "kernels"}


def numbers_of(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that changes the numbers, as plain JSON types.

    Covers data, augment, model, method, optim, ema, train, seed. An image folder has no name of
    its own, so for it the place of the pictures counts.
    """
    data = recipe.data
    places = _DATA_PLACES - ({"root", "csv"} if data.name == "imagefolder" else set())
    # Keys younger than runs that never name them: they keep their hashes.
    younger = {"test_split"} if data.test_split == "test" else set()
    younger |= {"mixed"} if data.name != "mixed_domains" else set()
    numbers = recipe.model_dump(
        mode="json",
        include={"data", "augment", "model", "method", "optim", "ema", "train", "seed"},
        exclude={
            "data": places | younger,
            "model": {"head"} if recipe.model.head == "new" else set(),
            "optim": _without(recipe.optim),
            "train": _TRAIN_EXTRA,
        },
    )
    return numbers | {"method": without_younger(numbers["method"], "method")}


def _without(optim: Optim) -> set[str]:
    # What to do when a run is extended says nothing of the run as it is. And a schedule as long
    # as the training is left out, so that recipes which never name the key keep their hashes.
    unset = {"schedule_epochs"} if optim.schedule_epochs is None else set()
    return {"schedule_on_extend"} | unset


def run_hash(recipe: Recipe) -> str:
    """8 hex digits that name the run."""
    text = json.dumps(numbers_of(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_dir(recipe: Recipe) -> Path:
    """The run folder: ``recipe.run_dir``, else runs/<name>/<run hash>."""
    return recipe.run_dir or Path("runs") / recipe.name / run_hash(recipe)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections as one mapping of dotted keys."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            items |= {f"{key}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            items[key] = value
    return items
