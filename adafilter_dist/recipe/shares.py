"""Which numbers of processes the micro-batches of a recipe can be shared out to."""

from __future__ import annotations

from adafilter_dist.errors import UserError
from adafilter_dist.recipe.deepspeed_json import without_auto
from adafilter_dist.recipe.engine import DeepSpeed
from adafilter_dist.recipe.schema import Recipe


def require_shares(recipe: Recipe, world_size: int, where: str) -> None:
    """UserError, beginning with ``where``, if not every process would have its share.

    Under DDP shares may be uneven; DeepSpeed counts the same number on every rank.
    """
    train = recipe.train
    if world_size > train.micro_batches:
        raise UserError(
            f"{where}: train.global_batch={train.global_batch} holds only {train.micro_batches} "
            f"micro-batches of {train.micro_batch}; start at most {train.micro_batches} processes, "
            "or lower train.micro_batch (it changes the numbers)"
        )
    if isinstance(recipe.engine, DeepSpeed):
        _require_equal_shares(recipe.engine, train.micro_batches, world_size, where)


def _require_equal_shares(
    engine: DeepSpeed, micro_batches: int, world_size: int, where: str
) -> None:
    if micro_batches % world_size:
        divisors = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
        raise UserError(
            f"{where}: engine=deepspeed gives every process the same number of the "
            f"{micro_batches} micro-batches; start {_either(divisors)} processes, or use "
            "engine=ddp"
        )
    share = micro_batches // world_size
    given = without_auto(engine.config).get("gradient_accumulation_steps", share)
    if given != share:
        raise UserError(
            f"{where}: engine.config: gradient_accumulation_steps={given}, but every process has "
            f"{share} of the {micro_batches} micro-batches; leave it out"
        )


def _either(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
