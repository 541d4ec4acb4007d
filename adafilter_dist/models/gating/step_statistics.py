"""Statistics that are summed per micro-batch, reduced over all ranks and applied once a step.

A module adds up the statistics of each micro-batch. Once a step the engine collects all sums in one
flat vector, all-reduces it with the gradients, and gives each module the means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


class StepStatistics(ABC):
    """Mixin of modules that gather statistics in training mode."""

    @abstractmethod
    def step_statistics(self) -> list[Tensor]:
        """Sums over the micro-batches since the last step: 1-D, fixed shapes, zero if none ran."""

    def flat_statistics(self) -> Tensor:
        """The sums one after the other; where they lie so, no copy."""
        return torch.cat(self.step_statistics())

    def statistic_sizes(self) -> list[int]:
        """How many numbers each of the sums has."""
        return [part.numel() for part in self.step_statistics()]

    @abstractmethod
    def apply_step_statistics(self, means: list[Tensor]) -> None:
        """Take the means over the global batch's micro-batches (same shapes); clear the sums."""

    @classmethod
    def apply_together(cls, modules: Sequence[Any], flat: Tensor, places: Sequence[int]) -> None:
        """`apply_step_statistics` for several modules of this class, faster where it can be.

        The means of each begin at its place in `flat`.
        """
        for module, place in zip(modules, places, strict=True):
            sizes = module.statistic_sizes()
            own = flat[place : place + sum(sizes)]
            module.apply_step_statistics(list(own.split(sizes)))

    @abstractmethod
    def discard_step_statistics(self) -> None:
        """Clear the sums without using them, as after a skipped step."""


def gathering_modules(model: nn.Module) -> list[StepStatistics]:
    """The modules that gather statistics, in the fixed order of `model.modules()`."""
    # Each step asks, and `modules()` takes a few milliseconds for a thousand modules.
    seen: set[nn.Module] = set()
    members: list[StepStatistics] = []
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        if StepStatistics in type(module).__mro__:
            members.append(cast(StepStatistics, module))
        if children := module._modules:
            waiting += reversed(children.values())
    return members


def collect(model: nn.Module) -> Tensor:
    """All sums as one flat vector (empty where nothing gathers); the sums stay as they are."""
    return _collect(gathering_modules(model), model)


def _collect(modules: Sequence[StepStatistics], model: nn.Module) -> Tensor:
    sums = [module.flat_statistics() for module in modules]
    if sums:
        return torch.cat(sums)
    reference = next(model.parameters(), torch.empty(0))
    return torch.empty(0, device=reference.device, dtype=reference.dtype)


def apply(model: nn.Module, flat_means: Tensor) -> None:
    """Hand each module its part of the reduced vector of `collect`."""
    _apply(gathering_modules(model), flat_means)


def _apply(modules: Sequence[StepStatistics], flat_means: Tensor) -> None:
    place = 0
    kinds: dict[type[StepStatistics], tuple[list[StepStatistics], list[int]]] = {}
    for module in modules:
        members, places = kinds.setdefault(type(module), ([], []))
        members.append(module)
        places.append(place)
        place += sum(module.statistic_sizes())
    if flat_means.numel() != place:
        raise ValueError(f"got {flat_means.numel()} statistics for a model with {place}")
    for kind, (members, places) in kinds.items():
        kind.apply_together(members, flat_means, places)


def discard(model: nn.Module) -> None:
    """Clear all sums, as after a skipped step."""
    for module in gathering_modules(model):
        module.discard_step_statistics()


def update_statistics(model: nn.Module) -> None:
    """Once a step in your own loop: move all running statistics by what the step has seen.

    Where a process group exists, the means are those over all its ranks: call it on every rank.
    """
    modules = gathering_modules(model)
    flat = _collect(modules, model)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flat)
    # Each module's sums carry their own count, so that sums may stand in for means here.
    _apply(modules, flat)
