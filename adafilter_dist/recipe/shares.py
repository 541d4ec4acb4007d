"""Which numbers of processes the micro-batches of a recipe can be shared out to."""

from __future__ import annotations

from adafilter_dist.errors import UserError
from adafilter_dist.recipe.deepspeed_json import without_auto
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.recipe.sections.training import Train


def require_shares(recipe: Recipe, world_size: int, where: str) -> None:
    """UserError, beginning with ``where``, if not every process would have its share.

    Under DDP shares may be uneven; DeepSpeed counts the same number on every rank. For processes
    that somebody else started, as torchrun does.
    """
    _require(recipe, world_size, where, f"start {_either(_world_sizes(recipe))} processes")


def require_job_shares(recipe: Recipe) -> None:
    """The same for the processes that ``launch:`` asks for; names the keys of it to set."""
    launch = recipe.launch
    where = f"launch.nodes={launch.nodes} x {launch.processes_per_node} processes"
    _require(recipe, launch.world_size, where, _other_job(recipe))


def _require(recipe: Recipe, world_size: int, where: str, fewer: str) -> None:
    train = recipe.train
    if world_size > train.micro_batches:
        raise UserError(
            f"{where}: train.global_batch={train.global_batch} holds only {train.micro_batches} "
            f"micro-batches of {train.micro_batch}; {fewer}, or set "
            f"{_batches_for(recipe, world_size)} (it changes the numbers)"
        )
    if isinstance(recipe.engine, DeepSpeed):
        _require_equal_shares(recipe, recipe.engine, world_size, where, fewer)


def _require_equal_shares(
    recipe: Recipe, engine: DeepSpeed, world_size: int, where: str, fewer: str
) -> None:
    micro_batches = recipe.train.micro_batches
    if micro_batches % world_size:
        raise UserError(
            f"{where}: engine=deepspeed gives every process the same number of the "
            f"{micro_batches} micro-batches; {fewer}, or use engine=ddp"
        )
    share = micro_batches // world_size
    steps = without_auto(engine.config).get("gradient_accumulation_steps", share)
    if steps != share:
        raise UserError(
            f"{where}: engine.config: gradient_accumulation_steps={steps}, but every process has "
            f"{share} of the {micro_batches} micro-batches; leave it out"
        )


def _world_sizes(recipe: Recipe) -> list[int]:
    """The numbers of processes that work, where there are few of them; else the largest alone."""
    most = recipe.train.micro_batches
    if isinstance(recipe.engine, DeepSpeed):
        return [size for size in range(1, most + 1) if most % size == 0]
    return [most]


def _other_job(recipe: Recipe) -> str:
    """Keys of ``launch:`` for the most processes that work, on as many to a node as asked."""
    launch, most = recipe.launch, recipe.train.micro_batches
    each = launch.processes_per_node
    equal = isinstance(recipe.engine, DeepSpeed)
    for nodes in range(min(launch.nodes, most // each), 0, -1):
        if not equal or most % (nodes * each) == 0:
            return f"set launch.nodes={nodes}"
    largest = next(n for n in range(min(each, most), 0, -1) if not equal or most % n == 0)
    key = "gpus_per_node" if launch.gpus_per_node else "tasks_per_node"
    return f"set launch.nodes=1 launch.{key}={largest}"


def _batches_for(recipe: Recipe, world_size: int) -> str:
    """The largest micro-batch that gives each of ``world_size`` processes one, else more of them.

    Two samples are the fewest that have statistics.
    """
    train: Train = recipe.train
    equal = isinstance(recipe.engine, DeepSpeed)
    for micro_batch in range(train.global_batch // world_size, 1, -1):
        count, rest = divmod(train.global_batch, micro_batch)
        if not rest and not (equal and count % world_size):
            return f"train.micro_batch={micro_batch}"
    return f"train.global_batch={world_size * train.micro_batch}"


def _either(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else f"at most {last}"
