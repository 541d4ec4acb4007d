"""Run identity: recipes with the same numbers are the same run, with the same hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import Baseline
from adafilter_dist.recipe.younger_keys import without_younger

# Where things lie and who reads them does not change the numbers.
_DATA_PLACES = {
    *("root", "prepared", "download", "loader", "num_workers", "csv", "stage_to", "verify"),
}
# When the run is validated does not change the weights. Micro-batches that share a forward have
# their own statistics, penalties and draws, and all kernels compute the same formulas: only the
# rounding differs, as it does between numbers of ranks. What is read from the cache is what would
# be computed; what is replayed as a graph has the same bits.
_TRAIN_EXTRA = {"evaluate_every", "micro_batches_per_forward", "graph", "kernels", "cache"}


def numbers_of(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that changes the numbers, as plain JSON types.

    Covers data, augment, model, method, optim, ema, train, seed. An image folder has no name of
    its own, so for it the place of the pictures counts. ``data.mixed`` counts for the data set that
    it describes, ``method.layers`` of a baseline where it says what is frozen. A younger key
    (``younger_keys``) counts where its value differs from what runs did before the key existed.
    """
    data = recipe.data
    places = _DATA_PLACES - ({"root", "csv"} if data.name == "imagefolder" else set())
    unused = {"mixed"} if data.name != "mixed_domains" else set()
    numbers = recipe.model_dump(
        mode="json",
        include={"data", "augment", "model", "method", "optim", "ema", "train", "seed"},
        exclude={
            "data": places | unused,
            # What to do when a run is extended; the run as it is does not depend on it.
            "optim": {"schedule_on_extend"},
            "train": _TRAIN_EXTRA,
            "method": _unused_of_method(recipe),
        },
    )
    return without_younger(numbers)


def _unused_of_method(recipe: Recipe) -> set[str]:
    method = recipe.method
    counts = not isinstance(method, Baseline) or recipe.model.ungated in method.layers_count_with
    return set() if counts else {"layers"}


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
