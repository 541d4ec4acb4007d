"""What the code of a forward can hold when it is read: modules, functions, constants, tensors."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

ADDS = {operator.add, operator.iadd, torch.add}
RELUS = {torch.relu, F.relu}
METHODS = {"add", "add_", "relu", "relu_", "flatten"}
# Functions that may stand in a line; what they compute depends on nothing but their arguments.
KNOWN = (*ADDS, *RELUS, torch.flatten, torch.cat)
MISSING = object()

_CONSTANTS = (bool, int, float, str)


class Unreadable(Exception):
    """The code does what is not read here."""


@dataclass(frozen=True)
class Part:
    """A module: the block itself at the path "", or one below it."""

    module: nn.Module
    path: str


@dataclass(frozen=True)
class Method:
    """A function of the block's class, or of a class above the one that `owner` is."""

    function: types.FunctionType


@dataclass(frozen=True)
class Super:
    """`super()` in a function of the class `owner`."""

    owner: type


@dataclass(frozen=True)
class TensorMethod:
    node: fx.Node
    name: str


def is_known(value: Any) -> bool:
    return isinstance(value, Callable) and any(  # type: ignore[arg-type]
        value is each for each in (*KNOWN, torch.jit.is_scripting)
    )


def is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return type(value) is tuple and all(is_constant(each) for each in value)
    return type(value) in _CONSTANTS and (type(value) is not float or math.isfinite(value))


def checked(value: Any) -> Any:
    """`value` as an argument in a graph; Unreadable for what cannot stand in one."""
    if isinstance(value, tuple | list):
        return type(value)(checked(each) for each in value)
    if isinstance(value, dict):
        return {key: checked(each) for key, each in value.items()}
    if value is None or isinstance(value, fx.Node) or is_constant(value):
        return value
    raise Unreadable


def expression_of(block: str, path: str) -> str:
    expression = block
    for name in path.split(".") if path else ():
        usual = name.isidentifier()
        expression = f"{expression}.{name}" if usual else f"getattr({expression}, {name!r})"
    return expression
