"""Other gates than the network's own, and looking on at them: around any forward.

For controls, ablations and figures; the gate itself is in `gate.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adafilter_dist.models.gating.gate import Observer, Override, find_gate


def constant(value: float) -> Override:
    """An override that sets every gate to `value`."""
    return lambda index, gates: torch.full_like(gates, value)


@contextmanager
def override_gates(model: nn.Module, function: Override) -> Iterator[None]:
    """Inside, `function(layer_index, gates) -> gates` (N, C) replaces every layer's gates."""
    with _registered(find_gate(model).overrides, function):
        yield


@contextmanager
def observe_gates(model: nn.Module, function: Observer) -> Iterator[None]:
    """Inside, `function(layer_index, layer_name, gates, probabilities)` sees every layer's gates.

    It sees the gates as used, after any override.
    """
    with _registered(find_gate(model).observers, function):
        yield


@contextmanager
def _registered(functions: list[Any], function: Any) -> Iterator[None]:
    functions.append(function)
    try:
        yield
    finally:
        functions.remove(function)
