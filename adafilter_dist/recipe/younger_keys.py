"""Keys that are younger than runs that go on: what a recipe without them meant.

A default may change when a key is added. An earlier run has its recipe written out in full,
without the key: it goes on with what it began with, and keeps its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The value that every run had before the key existed.
BEFORE: dict[str, Any] = {
    "method.batchnorm": "all",
    "method.fixed_statistics": "none",
    "method.gate.recipe": "paper",
    "method.gate.mode": "learned",
    "method.gate.probability": 0.5,
    "method.gate.oracle": None,
    "method.gate.decision": "filter",
    "method.gate.groups": 1,
    "method.gate.warmup": 0.15,
    "method.gate.lean": 0.1,
    "method.gate.ridge": 3e-4,
    "method.gate.look_ahead": 0.5,
    "method.gate.margin": 4.0,
    "method.gate.pictures": 4096,
}
# Sections that every recipe written out in full has had from the beginning.
_ALWAYS = {"name", "seed", "data", "augment", "model", "method", "optim", "train", "engine"}


def filled_in(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` of a recipe file, with what it meant if it was written out in full before the keys.

    A recipe that names only what differs from the defaults takes the defaults of today.
    """
    if not tree.keys() >= _ALWAYS or not _has(tree, "method.name"):
        return tree
    if tree["method"]["name"] != "adafilter" or not _has(tree, "method.gate.hidden"):
        return tree
    for key, value in BEFORE.items():
        if not _has(tree, key):
            *sections, last = key.split(".")
            inner: Any = tree
            for section in sections:
                inner = inner[section]
            inner[last] = value
    return tree


def without_younger(numbers: dict[str, Any], section: str) -> dict[str, Any]:
    """`numbers` of a section without the keys that stand as before they existed."""
    kept: dict[str, Any] = {}
    for key, value in numbers.items():
        path = f"{section}.{key}"
        if path in BEFORE and value == BEFORE[path]:
            continue
        kept[key] = without_younger(value, path) if isinstance(value, dict) else value
    return kept


def _has(tree: Mapping[str, Any], key: str) -> bool:
    inner: Any = tree
    for part in key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True
