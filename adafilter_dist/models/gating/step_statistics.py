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
    def apply_together(cls, modules: Sequence[Any], parts: Sequence[list[Tensor]]) -> None:
        """`apply_step_statistics` for several modules of this class, faster where it can be."""
        for module, means in zip(modules, parts, strict=True):
            module.apply_step_statistics(means)

    @abstractmethod
    def discard_step_statistics(self) -> None:
        """Clear the sums without using them, as after a skipped step."""


def gathering_modules(model: nn.Module) -> list[StepStatistics]:
    """The modules that gather statistics, in the fixed order of `model.modules()`."""
    # Each step asks, and `modules()` takes a few milliseconds for a thousand modules.
    seen: set[nn.Module] = set()
    members: list[StepStatistics] = []

    def visit(module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        if StepStatistics in type(module).__mro__:
            members.append(cast(StepStatistics, module))
        for child in module._modules.values():
            if child is not None:
                visit(child)

    visit(model)
    return members


def collect(model: nn.Module) -> Tensor:
    """All sums as one flat vector (empty where nothing gathers); the sums stay as they are."""
    sums = [module.flat_statistics() for module in gathering_modules(model)]
    if sums:
        return torch.cat(sums)
    reference = next(model.parameters(), torch.empty(0))
    return torch.empty(0, device=reference.device, dtype=reference.dtype)


def apply(model: nn.Module, flat_means: Tensor) -> None:
    """Hand each module its part of the reduced vector of `collect`."""
    modules = gathering_modules(model)
    shapes = [module.statistic_sizes() for module in modules]
    expected = sum(map(sum, shapes))
    if flat_means.numel() != expected:
        raise ValueError(f"got {flat_means.numel()} statistics for a model with {expected}")
    parts = iter(flat_means.split([size for sizes in shapes for size in sizes]))
    kinds: dict[type[StepStatistics], list[tuple[StepStatistics, list[Tensor]]]] = {}
    for module, sizes in zip(modules, shapes, strict=True):
        kinds.setdefault(type(module), []).append((module, [next(parts) for _ in sizes]))
    for kind, members in kinds.items():
        kind.apply_together([module for module, _ in members], [means for _, means in members])


def discard(model: nn.Module) -> None:
    """Clear all sums, as after a skipped step."""
    for module in gathering_modules(model):
        module.discard_step_statistics()


def update_statistics(model: nn.Module) -> None:
    """Once a step in your own loop: move all running statistics by what the step has seen.

    Where a process group exists, the means are those over all its ranks: call it on every rank.
    """
    flat = collect(model)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flat)
    # Each module's sums carry their own count, so that sums may stand in for means here.
    apply(model, flat)
