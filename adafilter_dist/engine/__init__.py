"""The step on ranks: DistributedDataParallel or DeepSpeed behind one interface.

How ranks meet is in `distributed`, what a step computes in `training.step`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from adafilter_dist.distributed import World
from adafilter_dist.engine.base import Engine, FullState
from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import UpdateRule
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed

__all__ = ["Engine", "FullState", "build_engine"]


def build_engine(
    model: nn.Module,
    groups: list[dict[str, Any]],
    recipe: Recipe,
    world: World,
    rule: UpdateRule | None = None,
) -> Engine:
    """The engine that ``engine.name`` asks for, imported only when used.

    UserError for a ``rule`` under ZeRO 1 to 3, where no rank has whole gradients.
    """
    if isinstance(recipe.engine, DeepSpeed):
        if rule is not None and recipe.engine.zero_stage:
            raise UserError(
                f"method={recipe.method.name}: looks at whole gradients and weights in each "
                f"update, which engine.zero_stage={recipe.engine.zero_stage} shares out among "
                "the ranks; use engine.zero_stage=0 or engine=ddp"
            )
        from adafilter_dist.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, groups, recipe, recipe.engine, world, rule)
    from adafilter_dist.engine.ddp import DDPEngine

    return DDPEngine(model, groups, recipe, world, rule)
