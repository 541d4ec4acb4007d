"""What ZeRO shares out over the ranks, and what that costs: Markdown tables.

    python benchmarks/zero.py                                      # computed, any world size
    torchrun --standalone --nproc-per-node=2 benchmarks/zero.py    # measured, 2 min on 2 idle cores

Plainly it computes the bytes that a rank keeps, for ResNet-50 with AdaFilter: from the shapes, by
the rules of DeepSpeed 0.19 for weights in fp32. Under torchrun it trains a small network with every
engine side by side, in one process a rank, on noise: it counts the same bytes on the tensors that
are there, on the rank with the most, beside the computed ones, and times steps and `full_state()`.
Every round takes one step with each engine, in an order that turns; medians over the rounds are
printed, with the lowest and the highest. Weights are random. Activations are in no table: they are
the same with every engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.data.loading.order import micro_batches_of_rank
from adafilter_dist.distributed import World, join_world
from adafilter_dist.engine import Engine, FullState, build_engine
from adafilter_dist.engine.deepspeed import BUCKET
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.gating.gated_conv import GatedConvBN
from adafilter_dist.models.gating.step_statistics import apply, collect
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed

WORLD_SIZES = (1, 2, 4, 8, 16, 64)
FP32 = 4  # bytes
PERSISTENT = 100_000  # elements; DeepSpeed's default for what is small enough to stay whole
KEPT = ("weights", "fp32 copy", "frozen", "buffers", "gradients", "optimizer")
PASSING = ("bucket", "fetched")  # what a step needs on top
LEGEND = """
*bucket*: gradients while they are reduced, `reduce_bucket_size`; ZeRO-0 flattens all of them.
*fetched*: weights that are whole between a forward and its backward, beside the shards.
*gradients* of ZeRO-2 are those of the rank whose partition cuts the largest weights."""
Bytes = dict[str, int]


@dataclass(frozen=True)
class Way:
    """DDP, or a ZeRO stage with DeepSpeed's settings; ``sharded`` shares out frozen filters too."""

    label: str
    stage: int | None = None
    settings: dict[str, int] = field(default_factory=dict)
    sharded: bool = False


ENGINES = (Way("DDP"), *(Way(f"ZeRO-{stage}", stage) for stage in range(4)))
SHARDED = Way("ZeRO-3, frozen filters shared out", 3, sharded=True)
RELEASED = Way(
    "ZeRO-3, weights let go at once",
    3,
    {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0},
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a network by name (resnet50; measured: resnet18)")
    parser.add_argument("--bucket", type=int, help="reduce_bucket_size, elements (500,000,000)")
    parser.add_argument("--classes", type=int, default=101, help="of the classifier (101)")
    parser.add_argument("--image-size", type=int, default=64, help="measured: pixels (64)")
    parser.add_argument("--micro-batch", type=int, default=4, help="measured: pictures (4)")
    parser.add_argument("--micro-batches", type=int, default=2, help="measured: of a rank (2)")
    parser.add_argument("--rounds", type=int, default=6, help="measured: of timed steps (6)")
    parser.add_argument("words", nargs="*", help="more of the recipe, as key=value")
    given = parser.parse_args()
    measured = "RANK" in os.environ
    given.model = given.model or ("resnet18" if measured else "resnet50")
    if measured:
        measure(given)
    else:
        tell_computed(given)


def recipe_of(given: argparse.Namespace, way: Way, *words: str) -> Recipe:
    """Food-101's, which needs neither data nor weights here."""
    if way.stage is not None:
        bucket = {"reduce_bucket_size": given.bucket} if given.bucket else {}
        config = json.dumps({"zero_optimization": way.settings | bucket})
        words += ("engine=deepspeed", f"engine.zero_stage={way.stage}", f"engine.config={config}")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batch = given.micro_batch * given.micro_batches * ranks
    return load_recipe(
        [
            "recipe=food101",
            "data.root=.",
            f"model.name={given.model}",
            "model.weights=null",
            "train.precision=fp32",
            f"data.resolution={given.image_size}",
            f"train.global_batch={batch}",
            f"train.micro_batch={given.micro_batch}",
            *words,
            *given.words,
        ]
    )


def built_of(recipe: Recipe, classes: int) -> TrainableModel:
    return build_method(load_backbone(recipe, classes), recipe)


# What is computed.


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
    found = dict(zip((*KEPT, *PASSING), (FP32 * n for n in elements), strict=True))
    return found | {"buffers": sizes.buffers}


def shards(sizes: list[int], world: int, small: int) -> tuple[int, int, int]:
    """Elements kept, fetched for a step, and those of the shards alone; small ones stay whole."""
    part = sum(up(size, world) // world for size in sizes)
    held = sum(size for size in sizes if size <= small)
    return part + held, sum(up(size, world) for size in sizes if size > small), part


def touched(groups: list[list[int]], world: int, rank: int) -> int:
    """Elements of the gradients that reach into a rank's partition, whole, and of the padding."""
    found = 0
    for group in groups:
        step = up(sum(group), 2 * world) // world
        begin, end, at = rank * step, (rank + 1) * step, 0
        for size in group:
            found += size if at < end and at + size > begin else 0
            at += size
        found += max(0, end - max(at, begin))
    return found


def up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def setting(recipe: Recipe, key: str, default: int) -> int:
    """Of `zero_optimization` in the recipe's engine.config."""
    config = recipe.engine.config if isinstance(recipe.engine, DeepSpeed) else {}
    return int(config.get("zero_optimization", {}).get(key, default))


def tell_computed(given: argparse.Namespace) -> None:
    recipe = recipe_of(given, ENGINES[0])
    sizes = Sizes.of(built_of(recipe, given.classes))
    print(
        f"{recipe.model.name} with AdaFilter, {given.classes} classes: "
        f"{sum(sizes.trained) / 1e6:.1f} million trained weights, "
        f"{sum(sizes.frozen) / 1e6:.1f} million frozen ones; fp32. Megabytes a rank, computed."
    )
    title("Kept by a rank with SGD and momentum, and with AdamW; on top during a step")
    table("", "ranks", *KEPT[:-1], "momentum", "sum", "with AdamW", *PASSING)
    for way in ENGINES:
        any_number = way in ENGINES[:2]
        for world in WORLD_SIZES[:1] if any_number else WORLD_SIZES:
            sgd, adamw = (
                computed(sizes, recipe_of(given, way, f"optim.name={name}"), world)
                for name in ("sgd", "adamw")
            )
            cells = [megabytes(sgd[kind]) for kind in KEPT]
            sums = [megabytes(total(found)) for found in (sgd, adamw)]
            passing = [megabytes(sgd[kind]) for kind in PASSING]
            row(way.label, "any" if any_number else f"{world}", *cells, *sums, *passing)
    print(LEGEND)


def total(found: Bytes) -> int:
    return sum(found[kind] for kind in KEPT)


# What is measured.


class Runner:
    """A network of its own under one engine, and steps of it on noise."""

    def __init__(self, way: Way, given: argparse.Namespace, world: World) -> None:
        self.way = way
        self.recipe = recipe_of(given, way)
        self.trainable = built_of(self.recipe, given.classes)
        self.sizes = Sizes.of(self.trainable)
        self.world = world
        if way.sharded:
            share_frozen(self.trainable.model)
        self.engine: Engine = build_engine(
            self.trainable.model, self.trainable.groups, self.recipe, world
        )
        train, side = self.recipe.train, given.image_size
        torch.manual_seed(world.rank)
        images = torch.randn(train.micro_batch, 3, side, side)
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self._images = images.to(world.device).contiguous(memory_format=layout)
        self._labels = torch.arange(train.micro_batch, device=world.device) % given.classes
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
                engine.backward(loss + self.trainable.penalty())
            yield "after a backward"
        means = engine.reduce(collect(engine.model)) / self.recipe.train.micro_batches
        if not engine.step(1e-3):
            raise SystemExit(f"{self.way.label}: a step was skipped")
        apply(engine.model, means)

    def seconds(self) -> float:
        """Of a step of all ranks."""
        return timed(self.world, lambda: [None for _ in self.step()])[0]


def share_frozen(model: nn.Module) -> None:
    """Frozen filters as parameters that are not trained: ZeRO-3 takes these apart too."""
    for module in model.modules():
        if isinstance(module, GatedConvBN):
            frozen = module.frozen_weight
            del module.frozen_weight
            module.frozen_weight = nn.Parameter(frozen, requires_grad=False)


def timed(world: World, work: Any) -> tuple[float, Any]:
    """Seconds until every rank has done it, and what it gave."""
    dist.barrier()
    began = time.perf_counter()
    found = work()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter() - began, found


def measure(given: argparse.Namespace) -> None:
    with join_world(recipe_of(given, ENGINES[0])) as world:
        ways = (*ENGINES, SHARDED, RELEASED)
        runners = [Runner(way, given, world) for way in ways]
        if world.is_rank0:
            tell_machine(runners[0], given)
        for runner in runners:
            for _ in range(2):  # ZeRO-3 learns the order of the layers
                runner.seconds()
        found = [counted(runner) for runner in runners]
        if world.is_rank0:
            tell_bytes(runners, found)
        times: dict[str, list[float]] = defaultdict(list)
        for number in range(given.rounds):
            turn = number % len(runners)
            for runner in runners[turn:] + runners[:turn]:
                times[runner.way.label].append(runner.seconds())
        if world.is_rank0:
            tell_times(times)
        states = [states_of(runner) for runner in runners[: len(ENGINES)]]
        if world.is_rank0:
            tell_states(runners, states)
            print(f"\nLoad average at the end: {load()}")


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
    found = rest | {
        "gradients": max(one["gradients"] for one in seen["after a backward"]),
        "bucket": max(one["bucket"] for one in seen["in a backward"]),
        "fetched": sum(forward[kind] - rest[kind] for kind in ("weights", "frozen")),
    }
    numbers = torch.tensor([found[kind] for kind in (*KEPT, *PASSING)], dtype=torch.int64)
    numbers = numbers.to(runner.world.device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return dict(zip((*KEPT, *PASSING), map(int, numbers), strict=True))


def live(engine: Any) -> Bytes:
    """Bytes of the storages behind an engine's tensors, each counted once."""
    seen: set[int] = set()
    return {kind: new_bytes(tensors, seen) for kind, tensors in tensors_of(engine).items()}


def new_bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of storages that are not among those seen, which they then are."""
    found = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found += storage.nbytes()
    return found


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


def states_of(runner: Runner, times: int = 5) -> tuple[list[float], int, int]:
    """Seconds of `full_state()`, its bytes, and those of them that it takes anew."""
    found = []
    for _ in range(times):
        taken, state = timed(runner.world, runner.engine.full_state)
        found.append(taken)
    assert isinstance(state, FullState)
    tensors = [tensor for _, tensor in state.tensors()]
    seen: set[int] = set()
    for own in tensors_of(runner.engine).values():
        new_bytes(own, seen)
    return found, sum(tensor.nbytes for tensor in tensors), new_bytes(tensors, seen)


# What is printed.


def tell_machine(runner: Runner, given: argparse.Namespace) -> None:
    world, recipe, sizes = runner.world, runner.recipe, runner.sizes
    cuda = world.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU, {world.threads} threads a rank"
    print(
        f"{processor()}, {os.cpu_count()} cores, {device}; {world.world_size} ranks, "
        f"{'NCCL' if cuda else 'gloo'}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, DeepSpeed {metadata.version('deepspeed')}; load average at the "
        f"start {load()}.\n"
        f"{recipe.model.name} with AdaFilter, {given.classes} classes, {given.image_size} px, "
        f"{given.micro_batches} micro-batches of {given.micro_batch} a rank, "
        f"{recipe.train.precision}, {recipe.optim.name}; {sum(sizes.trained) / 1e6:.1f} million "
        f"trained weights, {sum(sizes.frozen) / 1e6:.1f} million frozen ones.",
        flush=True,
    )


def tell_bytes(runners: list[Runner], found: list[Bytes]) -> None:
    title("Megabytes of a rank, counted on live tensors (computed)")
    table("", *KEPT, "sum", *PASSING)
    for runner, seen in zip(runners, found, strict=True):
        ranks = runner.world.world_size
        wanted = computed(runner.sizes, runner.recipe, ranks, sharded=runner.way.sharded)
        pairs = [(seen[kind], wanted[kind]) for kind in KEPT]
        pairs.append((total(seen), total(wanted)))
        pairs += [(seen[kind], wanted[kind]) for kind in PASSING]
        row(runner.way.label, *(f"{megabytes(a)} ({megabytes(b)})" for a, b in pairs))


def tell_times(times: dict[str, list[float]]) -> None:
    rounds = len(times["DDP"])
    title(f"A training step ({rounds} rounds)")
    table("", "ms", "to DDP", "to ZeRO-3")
    for label, found in times.items():
        ratios = [ratio(found, times["DDP"])]
        ratios.append(ratio(found, times["ZeRO-3"]) if label.startswith("ZeRO-3,") else "")
        row(label, spread(found), *ratios)


def ratio(these: list[float], those: list[float]) -> str:
    """The median over rounds, with the lowest and the highest."""
    return spread([a / b for a, b in zip(these, those, strict=True)], 1.0, 2)


def tell_states(runners: list[Runner], states: list[tuple[list[float], int, int]]) -> None:
    title("`full_state()`, as for a checkpoint")
    table("", "ms", "MB of the state", "of them taken anew")
    for runner, (found, whole, anew) in zip(runners, states, strict=False):
        row(runner.way.label, spread(found), megabytes(whole), megabytes(anew))


def megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}" if number else "-"


def spread(times: list[float], scale: float = 1000.0, digits: int = 0) -> str:
    """The median, with the lowest and the highest."""
    low, middle, high = (
        f"{scale * pick(times):.{digits}f}" for pick in (min, statistics.median, max)
    )
    return f"{middle} ({low} to {high})"


def title(text: str) -> None:
    print(f"\n**{text}**\n")


def table(*cells: str) -> None:
    row(*cells)
    print("|---" + "|---:" * (len(cells) - 1) + "|")


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
