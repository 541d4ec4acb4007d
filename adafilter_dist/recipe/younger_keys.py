"""Younger keys: those added after runs had begun, with the value that those runs had without it.

The default of a new key may be another value. The recipe of an earlier run is written out in full,
without the key. The run goes on with the value it began with, and keeps its hash: a key with that
value is left out of the hash, in every section. So a key stays in the table, also when its default
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# For each younger key, the value that every run had before the key existed. Those of `method` are
# AdaFilter's.
VALUE_BEFORE_KEY: dict[str, Any] = {
    "data.test_split": "test",
    "data.join_validation": False,
    "data.draw": "split_seed",
    "data.mixed.original_changes": [],
    "model.head": "new",
    "method.batchnorm": "all",
    "method.fixed_statistics": "none",
    "method.shared_batchnorm": False,
    "method.gate.recipe": "paper",
    "method.gate.mode": "learned",
    "method.gate.probability": 0.5,
    "method.gate.oracle": None,
    "method.gate.decision": "filter",
    "method.gate.groups": 1,
    "method.gate.warmup": 0.15,
    "method.gate.lean": 0.1,
    "method.gate.ridge": 3e-4,
    "method.gate.contrast": 0.0,
    "method.gate.look_ahead": 0.5,
    "method.gate.margin": 4.0,
    "method.gate.pictures": 4096,
    "method.gate.recurrent": True,
    "optim.schedule_epochs": None,
}
# The same for keys of other methods, by the method's name.
OF_OTHER_METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"method.layers": None},
    "linear_probe": {"method.layers": None},
}
# Sections that every recipe written out in full has had from the beginning.
_ALWAYS = {"name", "seed", "data", "augment", "model", "method", "optim", "train", "engine"}
# Keys without a use of their own in most recipes by hand; all are there when a recipe is written
# out in full.
_IN_FULL = ("data.root", "model.bn_momentum", "augment.mixup", "optim.momentum", "train.clip_norm")


def filled_in(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` of a recipe file with the younger keys filled in, if it is that of a run.

    Such a recipe is written out in full. A recipe that names only what differs from the defaults
    takes the defaults of today. Of other methods than AdaFilter only keys of `method` are filled
    in: outside it, the value before the key still is their default.
    """
    if not tree.keys() >= _ALWAYS or not _has(tree, "method.name"):
        return tree
    name = tree["method"]["name"]
    if name == "adafilter" and _has(tree, "method.gate.hidden"):
        values = VALUE_BEFORE_KEY
    elif isinstance(name, str) and all(_has(tree, key) for key in _IN_FULL):
        values = OF_OTHER_METHODS.get(name, {})
    else:
        return tree
    for key, value in values.items():
        *sections, last = key.split(".")
        inner: Any = tree
        for section in sections:
            # A section that is younger than the recipe takes its defaults.
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict):  # what else it may be is refused later
            inner.setdefault(last, value)
    return tree


def without_younger(numbers: dict[str, Any]) -> dict[str, Any]:
    """`numbers` of a recipe without the younger keys that have their value from before."""
    return _without(numbers, _values_before(numbers["method"]["name"]))


def _values_before(method: str) -> dict[str, Any]:
    if method == "adafilter":
        return VALUE_BEFORE_KEY
    outside = {k: v for k, v in VALUE_BEFORE_KEY.items() if not k.startswith("method.")}
    return outside | OF_OTHER_METHODS.get(method, {})


def _without(numbers: dict[str, Any], values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in numbers.items():
        path = above + key
        if path in values and value == values[path]:
            continue
        kept[key] = _without(value, values, f"{path}.") if isinstance(value, dict) else value
    return kept


def _has(tree: Mapping[str, Any], key: str) -> bool:
    inner: Any = tree
    for part in key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True
