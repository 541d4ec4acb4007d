"""The step on ranks: DistributedDataParallel or DeepSpeed behind one interface.

How ranks meet is in `distributed`, what a step computes in `training.step`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from adafilter_dist.distributed import World
from adafilter_dist.engine.base import Engine, FullState
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed

__all__ = ["Engine", "FullState", "build_engine"]


def build_engine(
    model: nn.Module, groups: list[dict[str, Any]], recipe: Recipe, world: World
) -> Engine:
    """The engine that ``engine.name`` asks for, imported only when used."""
    if isinstance(recipe.engine, DeepSpeed):
        from adafilter_dist.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, groups, recipe, recipe.engine, world)
    from adafilter_dist.engine.ddp import DDPEngine

    return DDPEngine(model, groups, recipe, world)
