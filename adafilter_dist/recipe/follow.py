"""Keys that follow another one: what a lower layer set gives way where only that one is set anew.

A recipe's weights are those of its network, and its warm-up is part of its length. Another
network, or a shorter run, by words or by a recipe over a base, need not say them again.
"""

from __future__ import annotations

from typing import Any

from adafilter_dist.recipe.sections.model import Model, is_weights_file
from adafilter_dist.recipe.sections.training import Train


def give_way(below: dict[str, Any], over: dict[str, Any]) -> None:
    """Change in ``below`` what does not fit ``over``: another network's weights, a long warm-up."""
    _weights(below, over)
    _warmup(below, over)


def _weights(below: dict[str, Any], over: dict[str, Any]) -> None:
    """The published weights of another network give way to this network's DEFAULT.

    A file, and null for random weights, belong to no network, and stay.
    """
    model, new = below.get("model"), over.get("model")
    if not isinstance(model, dict) or not isinstance(new, dict):
        return
    name = new.get("name")
    if name is None or "weights" in new or name == model.get("name", _default(Model, "name")):
        return
    weights = model.get("weights")
    if isinstance(weights, str) and not is_weights_file(weights):
        below["model"] = {key: value for key, value in model.items() if key != "weights"}


def _warmup(below: dict[str, Any], over: dict[str, Any]) -> None:
    """A warm-up as long as the training becomes half as long."""
    optim, new = below.get("optim"), over.get("optim", {})
    if not isinstance(optim, dict) or not isinstance(new, dict) or "warmup_epochs" in new:
        return
    train, shorter = below.get("train"), over.get("train")
    train, shorter = (part if isinstance(part, dict) else {} for part in (train, shorter))
    if "epochs" not in shorter and "schedule_epochs" not in new:
        return
    epochs = shorter.get("epochs", train.get("epochs", _default(Train, "epochs")))
    length = new.get("schedule_epochs", optim.get("schedule_epochs")) or epochs
    warmup = optim.get("warmup_epochs")
    numbers = all(map(_is_number, (length, epochs, warmup)))
    if numbers and 0 < min(epochs, length) <= warmup:
        below["optim"] = {**optim, "warmup_epochs": min(epochs, length) / 2}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _default(section: type[Model] | type[Train], key: str) -> Any:
    return section.model_fields[key].default
