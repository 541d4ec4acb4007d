"""The bytes that a rank keeps under DDP and each ZeRO stage, computed from the shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from adafilter_dist.engine.deepspeed import BUCKET
from adafilter_dist.methods import TrainableModel
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed

FP32 = 4  # bytes
PERSISTENT = 100_000  # elements; DeepSpeed's default for what is small enough to stay whole
KEPT = ("weights", "fp32 copy", "frozen", "buffers", "gradients", "optimizer")
PASSING = ("bucket", "fetched")  # what a step needs on top
Bytes = dict[str, int]


@dataclass(frozen=True)
class Sizes:
    """Elements of the trained weights by optimizer group, of frozen ones; bytes of buffers."""

    groups: list[list[int]]
    frozen: list[int]
    buffers: int

    @classmethod
    def of(cls, trainable: TrainableModel) -> Sizes:
        frozen, buffers = split(trainable.model.named_buffers())
        groups = [[p.numel() for p in group["params"]] for group in trainable.groups]
        held = [p for p in trainable.model.parameters() if not p.requires_grad]
        return cls(groups, [t.numel() for t in [*frozen, *held]], sum(t.nbytes for t in buffers))

    @property
    def trained(self) -> list[int]:
        return [size for group in self.groups for size in group]


def split(buffers: Iterable[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """The frozen filters, and all else."""
    named = list(buffers)
    frozen = [t for name, t in named if is_frozen(name)]
    return frozen, [t for name, t in named if not is_frozen(name)]


def is_frozen(name: str) -> bool:
    return name.rpartition(".")[2].startswith("frozen_")


def computed(sizes: Sizes, recipe: Recipe, world: int, *, sharded: bool = False) -> Bytes:
    """Bytes by kind of the rank that has the most."""
    stage = recipe.engine.zero_stage if isinstance(recipe.engine, DeepSpeed) else None
    whole, frozen = sum(sizes.trained), sum(sizes.frozen)
    weights = part = gradients = whole
    copy = bucket = fetched = 0
    if stage == 0:
        bucket = whole  # the gradients once more, flattened
    elif stage in (1, 2):
        flats = [up(sum(group), 2 * world) for group in sizes.groups]
        weights, part = sum(flats), sum(flats) // world
        copy, bucket = part, setting(recipe, "reduce_bucket_size", BUCKET)
        if stage == 2:
            gradients = max(touched(sizes.groups, world, rank) for rank in range(world))
    elif stage == 3:
        small = setting(recipe, "stage3_param_persistence_threshold", PERSISTENT)
        weights, fetched, part = shards(sizes.trained, world, small)
        copy = gradients = part
        bucket = setting(recipe, "reduce_bucket_size", BUCKET)
        if sharded:
            frozen, more, _ = shards(sizes.frozen, world, small)
            fetched += more
        if setting(recipe, "stage3_max_reuse_distance", 1) == 0:
            fetched = 0
    moments = 2 if recipe.optim.name == "adamw" else int(recipe.optim.momentum > 0)
    elements = (weights, copy, frozen, 0, gradients, moments * part, bucket, fetched)
    by_kind = dict(zip((*KEPT, *PASSING), (FP32 * n for n in elements), strict=True))
    return by_kind | {"buffers": sizes.buffers}


def shards(sizes: list[int], world: int, small: int) -> tuple[int, int, int]:
    """Elements kept, fetched for a step, and those of the shards alone; small ones stay whole."""
    part = sum(up(size, world) // world for size in sizes)
    held = sum(size for size in sizes if size <= small)
    return part + held, sum(up(size, world) for size in sizes if size > small), part


def touched(groups: list[list[int]], world: int, rank: int) -> int:
    """Elements of the gradients that reach into a rank's partition, whole, and of the padding."""
    elements = 0
    for group in groups:
        step = up(sum(group), 2 * world) // world
        begin, end, at = rank * step, (rank + 1) * step, 0
        for size in group:
            elements += size if at < end and at + size > begin else 0
            at += size
        elements += max(0, end - max(at, begin))
    return elements


def up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def setting(recipe: Recipe, key: str, default: int) -> int:
    """Of `zero_optimization` in the recipe's engine.config."""
    config = recipe.engine.config if isinstance(recipe.engine, DeepSpeed) else {}
    return int(config.get("zero_optimization", {}).get(key, default))


def total(by_kind: Bytes) -> int:
    return sum(by_kind[kind] for kind in KEPT)
