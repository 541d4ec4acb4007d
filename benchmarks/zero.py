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
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata

import torch
from bench.reporting import Column, Table, load_average, processor, say
from bench.timing import Sample, interleave, median_and_extremes, phase
from bench.zero_bytes import KEPT, PASSING, Bytes, Sizes, computed, total
from bench.zero_steps import Runner, counted, states_of

from adafilter_dist.distributed import join_world
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.recipe import Recipe, load_recipe

WORLD_SIZES = (1, 2, 4, 8, 16, 64)
LEGEND = """
*bucket*: gradients while they are reduced, `reduce_bucket_size`; ZeRO-0 flattens all of them.
*fetched*: weights that are whole between a forward and its backward, beside the shards.
*gradients* of ZeRO-2 are those of the rank whose partition cuts the largest weights."""


@dataclass(frozen=True)
class Way:
    """DDP, or a ZeRO stage with DeepSpeed's settings; ``sharded`` shares out frozen filters too."""

    label: str
    stage: int | None = None
    settings: dict[str, int] = field(default_factory=dict, hash=False)
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
    options = parser.parse_args()
    measured = "RANK" in os.environ
    options.model = options.model or ("resnet18" if measured else "resnet50")
    if measured:
        measure(options)
    else:
        tell_computed(options)


def recipe_of(options: argparse.Namespace, way: Way, *words: str) -> Recipe:
    """Food-101's, which needs neither data nor weights here."""
    if way.stage is not None:
        bucket = {"reduce_bucket_size": options.bucket} if options.bucket else {}
        config = json.dumps({"zero_optimization": way.settings | bucket})
        words += ("engine=deepspeed", f"engine.zero_stage={way.stage}", f"engine.config={config}")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batch = options.micro_batch * options.micro_batches * ranks
    return load_recipe(
        [
            "recipe=food101",
            "data.root=.",
            f"model.name={options.model}",
            "model.weights=null",
            "train.precision=fp32",
            f"data.resolution={options.image_size}",
            f"train.global_batch={batch}",
            f"train.micro_batch={options.micro_batch}",
            *words,
            *options.words,
        ]
    )


def built_of(recipe: Recipe, classes: int) -> TrainableModel:
    return build_method(load_backbone(recipe, classes), recipe)


def tell_computed(options: argparse.Namespace) -> None:
    recipe = recipe_of(options, ENGINES[0])
    sizes = Sizes.of(built_of(recipe, options.classes))
    print(
        f"{recipe.model.name} with AdaFilter, {options.classes} classes: "
        f"{sum(sizes.trained) / 1e6:.1f} million trained weights, "
        f"{sum(sizes.frozen) / 1e6:.1f} million frozen ones; fp32. Megabytes a rank, computed."
    )
    kept = table(
        "Kept by a rank with SGD and momentum, and with AdamW; on top during a step",
        *("", "ranks", *KEPT[:-1], "momentum", "sum", "with AdamW", *PASSING),
    )
    for way in ENGINES:
        any_number = way in ENGINES[:2]
        for world in WORLD_SIZES[:1] if any_number else WORLD_SIZES:
            sgd, adamw = (
                computed(sizes, recipe_of(options, way, f"optim.name={name}"), world)
                for name in ("sgd", "adamw")
            )
            cells = [megabytes(sgd[kind]) for kind in KEPT]
            sums = [megabytes(total(by_kind)) for by_kind in (sgd, adamw)]
            passing = [megabytes(sgd[kind]) for kind in PASSING]
            kept.add(way.label, "any" if any_number else f"{world}", *cells, *sums, *passing)
    kept.print_markdown()
    print(LEGEND)


def measure(options: argparse.Namespace) -> None:
    with join_world(recipe_of(options, ENGINES[0])) as world:
        runners = {}
        for way in (*ENGINES, SHARDED, RELEASED):
            recipe = recipe_of(options, way)
            trainable = built_of(recipe, options.classes)
            runners[way] = Runner(
                recipe, trainable, world, options.image_size, options.classes, sharded=way.sharded
            )
        if world.is_rank0:
            tell_machine(runners[ENGINES[0]], options)
        for runner in runners.values():
            for _ in range(2):  # ZeRO-3 learns the order of the layers
                runner.seconds()
        by_kind = {way: counted(runner) for way, runner in runners.items()}
        if world.is_rank0:
            tell_bytes(runners, by_kind)
        works = {way.label: partial(seconds_of, runner) for way, runner in runners.items()}
        progress = say if world.is_rank0 else lambda line: None
        times = interleave(works, options.rounds, progress, warm_up=0)
        if world.is_rank0:
            tell_times({label: phase(samples, "step") for label, samples in times.items()})
        states = {way: states_of(runners[way]) for way in ENGINES}
        if world.is_rank0:
            tell_states(states)
            print(f"\nLoad average at the end: {load_average()}")


def seconds_of(runner: Runner) -> Sample:
    return {"step": runner.seconds()}


# What is printed.


def tell_machine(runner: Runner, options: argparse.Namespace) -> None:
    world, recipe, sizes = runner.world, runner.recipe, runner.sizes
    cuda = world.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU, {world.threads} threads a rank"
    print(
        f"{processor()}, {os.cpu_count()} cores, {device}; {world.world_size} ranks, "
        f"{'NCCL' if cuda else 'gloo'}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, DeepSpeed {metadata.version('deepspeed')}; load average at the "
        f"start {load_average()}.\n"
        f"{recipe.model.name} with AdaFilter, {options.classes} classes, {options.image_size} px, "
        f"{options.micro_batches} micro-batches of {options.micro_batch} a rank, "
        f"{recipe.train.precision}, {recipe.optim.name}; {sum(sizes.trained) / 1e6:.1f} million "
        f"trained weights, {sum(sizes.frozen) / 1e6:.1f} million frozen ones.",
        flush=True,
    )


def tell_bytes(runners: dict[Way, Runner], by_kind: dict[Way, Bytes]) -> None:
    counts = table(
        "Megabytes of a rank, counted on live tensors (computed)", "", *KEPT, "sum", *PASSING
    )
    for way, runner in runners.items():
        live = by_kind[way]
        ranks = runner.world.world_size
        wanted = computed(runner.sizes, runner.recipe, ranks, sharded=way.sharded)
        pairs = [(live[kind], wanted[kind]) for kind in KEPT]
        pairs.append((total(live), total(wanted)))
        pairs += [(live[kind], wanted[kind]) for kind in PASSING]
        counts.add(way.label, *(f"{megabytes(a)} ({megabytes(b)})" for a, b in pairs))
    counts.print_markdown()


def tell_times(times: dict[str, list[float]]) -> None:
    rounds = len(times["DDP"])
    steps = table(f"A training step ({rounds} rounds)", "", "ms", "to DDP", "to ZeRO-3")
    for label, own in times.items():
        to_zero3 = ratio(own, times["ZeRO-3"]) if label.startswith("ZeRO-3,") else ""
        steps.add(label, median_and_extremes(own), ratio(own, times["DDP"]), to_zero3)
    steps.print_markdown()


def ratio(these: list[float], those: list[float]) -> str:
    """The median over rounds, with the lowest and the highest."""
    return median_and_extremes([a / b for a, b in zip(these, those, strict=True)], 1.0, 2)


def tell_states(states: dict[Way, tuple[list[float], int, int]]) -> None:
    title = "`full_state()`, as for a checkpoint"
    rows = table(title, "", "ms", "MB of the state", "of them taken anew")
    for way, (own, whole, anew) in states.items():
        rows.add(way.label, median_and_extremes(own), megabytes(whole), megabytes(anew))
    rows.print_markdown()


def table(title: str, first: str, *numbers: str) -> Table:
    return Table(title, [Column(first), *(Column(name, 0) for name in numbers)])


def megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}" if number else "-"


if __name__ == "__main__":
    main()
