"""Steps of a network under one engine on noise, and the tensors that are there meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.data.loading.order import micro_batches_of_rank
from adafilter_dist.distributed import World
from adafilter_dist.engine import Engine, FullState, build_engine
from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.gating.step_statistics import apply, collect
from adafilter_dist.recipe import Recipe
from bench.timing import timed_on_all_ranks
from bench.zero_bytes import KEPT, PASSING, Bytes, Sizes, split


class Runner:
    """A network under the engine of its recipe, and steps of it on noise.

    ``sharded``: ZeRO-3 takes its frozen filters apart too.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainable: TrainableModel,
        world: World,
        image_size: int,
        classes: int,
        *,
        sharded: bool,
    ) -> None:
        self.recipe = recipe
        self.trainable = trainable
        self.sizes = Sizes.of(trainable)
        self.world = world
        if sharded:
            share_frozen(trainable.model)
        self.engine: Engine = build_engine(trainable.model, trainable.groups, recipe, world)
        train = recipe.train
        torch.manual_seed(world.rank)
        images = torch.randn(train.micro_batch, 3, image_size, image_size)
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self._images = images.to(world.device).contiguous(memory_format=layout)
        self._labels = torch.arange(train.micro_batch, device=world.device) % classes
        self._share = micro_batches_of_rank(train.micro_batches, world.rank, world.world_size)

    def step(self) -> Iterator[str]:
        """One training step; stops to say where it is, so that tensors can be counted."""
        engine = self.engine
        engine.model.train()
        yield "at rest"
        for number in self._share:
            with engine.micro_batch(last=number == self._share[-1]):
                logits = engine.forward(self._images)
                yield "after a forward"
                loss = functional.cross_entropy(logits, self._labels)
                engine.backward(loss + self.trainable.penalty(self._labels))
            yield "after a backward"
        means = engine.reduce(collect(engine.model)) / self.recipe.train.micro_batches
        if not engine.step(1e-3):
            raise SystemExit(f"{type(engine).__name__}: a step was skipped")
        apply(engine.model, means)

    def seconds(self) -> float:
        """Of a step of all ranks."""
        return timed_on_all_ranks(self.world.device, lambda: [None for _ in self.step()])[0]


def share_frozen(model: nn.Module) -> None:
    """Frozen filters as parameters that are not trained: ZeRO-3 takes these apart too."""
    for module in model.modules():
        if isinstance(module, GatedConvBN):
            frozen = module.frozen_weight
            del module.frozen_weight
            module.frozen_weight = nn.Parameter(frozen, requires_grad=False)


def counted(runner: Runner) -> Bytes:
    """Bytes by kind on live tensors of one step, the most of all ranks; ends with that step."""
    first = next(p for p in runner.engine.model.parameters() if p.requires_grad)
    seen: dict[str, list[Bytes]] = defaultdict(list)
    # The first weight's gradient is the last to come.
    hook = first.register_post_accumulate_grad_hook(
        lambda _: seen["in a backward"].append(live(runner.engine))
    )
    for moment in runner.step():
        seen[moment].append(live(runner.engine))
    hook.remove()
    (rest,) = seen["at rest"]
    forward = seen["after a forward"][-1]
    by_kind = rest | {
        "gradients": max(one["gradients"] for one in seen["after a backward"]),
        "bucket": max(one["bucket"] for one in seen["in a backward"]),
        "fetched": sum(forward[kind] - rest[kind] for kind in ("weights", "frozen")),
    }
    numbers = torch.tensor([by_kind[kind] for kind in (*KEPT, *PASSING)], dtype=torch.int64)
    numbers = numbers.to(runner.world.device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return dict(zip((*KEPT, *PASSING), map(int, numbers), strict=True))


def live(engine: Any) -> Bytes:
    """Bytes of the storages behind an engine's tensors, each counted once."""
    seen: set[int] = set()
    return {kind: new_bytes(tensors, seen) for kind, tensors in tensors_of(engine).items()}


def new_bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of storages that are not among those seen, which they then are."""
    size = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            size += storage.nbytes()
    return size


def tensors_of(engine: Any) -> dict[str, list[Tensor]]:
    """By kind; where two kinds lie in the same memory, the first has it."""
    optimizer = engine._optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    frozen, buffers = split(engine.model.named_buffers())
    named = dict(engine.model.named_parameters())
    trained = [p for p in named.values() if p.requires_grad]
    held = [p for p in named.values() if not p.requires_grad]
    copy = flat(getattr(optimizer, "single_partition_of_fp32_groups", ()))
    copy += flat(getattr(optimizer, "fp32_partitioned_groups_flat", ()))
    buckets = getattr(optimizer, "ipg_buckets", {}).values()
    gradients = [p.grad for p in [*trained, *copy]]
    for name in ("averaged_gradients", "all_grad_tensors", "grad_partitions_flat_buffer"):
        gradients += flat(getattr(optimizer, name, ()))
    return {
        "bucket": flat([bucket.buffer for bucket in buckets]),
        "frozen": [*frozen, *layout(held)],
        "buffers": buffers,
        "weights": layout(trained),
        "fp32 copy": copy,
        "gradients": flat(gradients),
        "optimizer": [t for state in inner.state.values() for t in flat(state)],
    }


def layout(parameters: Sequence[Any]) -> list[Tensor]:
    """The tensors of parameters, and this rank's shards of them."""
    return [p.data for p in parameters] + [p.ds_tensor for p in parameters if hasattr(p, "ds_id")]


def flat(nested: Any) -> list[Tensor]:
    """The tensors in lists and dictionaries."""
    if isinstance(nested, Tensor):
        return [nested]
    inside = nested.values() if isinstance(nested, dict) else nested
    return [t for one in inside for t in flat(one)] if isinstance(inside, Iterable) else []


def states_of(runner: Runner, repeats: int = 5) -> tuple[list[float], int, int]:
    """Seconds of `full_state()`, its bytes, and those of them that it takes anew."""
    seconds = []
    for _ in range(repeats):
        taken, state = timed_on_all_ranks(runner.world.device, runner.engine.full_state)
        seconds.append(taken)
    assert isinstance(state, FullState)
    tensors = [tensor for _, tensor in state.tensors()]
    seen: set[int] = set()
    for own in tensors_of(runner.engine).values():
        new_bytes(own, seen)
    return seconds, sum(tensor.nbytes for tensor in tensors), new_bytes(tensors, seen)
