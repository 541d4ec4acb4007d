"""What saving, stopping and going on cost: a Markdown table for each, measured side by side.

    python benchmarks/checkpoint.py                                    # minutes, on 2 cores
    python benchmarks/checkpoint.py --model resnet50 --image-size 224 --batch 64 --scratch /data

Made-up pictures, prepared by `adafilter prepare`; a network with AdaFilter and random weights.
Every round takes quiet steps, then one step with each way of saving behind it, in one process; the
disk is given time to finish between the ways. Medians over the rounds are printed, with the lowest
and the highest. Files go below --scratch: name a folder on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from bench.agreement import FLAGS, reading_of_flags, reductions
from bench.reporting import Column, Table, load_average, processor
from bench.restarting import fail, loading, restarts, started
from bench.saving import OURS, PLAIN, SYNCED, WAITED, Steps, Times, first_save, saves
from bench.timing import median_and_extremes
from PIL import Image

from adafilter_dist.checkpoint.interval import best_interval
from adafilter_dist.checkpoint.store import Checkpoints
from adafilter_dist.distributed import join_world
from adafilter_dist.models.gating.step_statistics import collect
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.sections.output import Checkpoint
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session, build_session


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:  # as the command has it, and it is read with torch
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="a network by name (resnet18)")
    parser.add_argument("--image-size", type=int, default=96, help="side of the pictures (96)")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step (16)")
    parser.add_argument("--micro-batch", type=int, help="pictures a micro-batch (the batch)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, help="of quiet steps and saves (5)")
    parser.add_argument("--restarts", type=int, default=3, help="times the command goes on (3)")
    parser.add_argument("--reductions", type=int, default=2000, help="pairs of all-reduces (2000)")
    parser.add_argument("--scratch", type=Path, help="where to write (the folder for such files)")
    parser.add_argument("words", nargs="*", help="more of the recipe, as key=value")
    options = parser.parse_args()
    print(f"    {shlex.join(['python', *sys.argv])}\n")
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All tables; first what happens in one process, then the real command, then two ranks."""
    words = prepare(options, folder)
    recipe = load_recipe(words)
    with join_world(recipe) as world:
        began = time.perf_counter()
        session = build_session(recipe, world)
        parts = {"session": time.perf_counter() - began}
        began = time.perf_counter()
        session.step.warm_up(session.preprocess.crop)
        parts["warm-up"] = time.perf_counter() - began
        tell_machine(session, folder)
        steps = Steps(session)
        firsts = [first_save(steps, folder / f"first{number}") for number in range(3)]
        times = saves(steps, firsts[-1][0], folder / "plain.pt", options.rounds)
        step = statistics.median(times["step"])
        tell_saves(times, [stall for _, stall in firsts], step, recipe.checkpoint)
        for saver, _ in firsts:
            saver.close()
        last = folder / f"first{len(firsts) - 1}"
        flags = reading_of_flags(session)
        values = collect(session.engine.model).numel()
    starts = restarts(words, folder, options.restarts)
    tell_sizes(last, folder)
    starts |= loading(last)
    tell_start(starts, parts)
    tell_agreement(reductions(values, options.reductions, folder), flags, values, step)
    print(f"\nLoad average at the end: {load_average()}")


def prepare(options: argparse.Namespace, folder: Path) -> list[str]:
    """The words of a recipe with made-up pictures for 40 steps, prepared by the real command."""
    draws = np.random.default_rng(0)
    size = options.image_size
    for number in range(42 * options.batch):
        place = folder / "pictures" / ("train" if number < 40 * options.batch else "test")
        place = place / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        patches = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        patches.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")
    words = [
        "recipe=imagefolder",
        f"data.root={folder / 'pictures'}",
        f"data.prepared={folder / 'prepared'}",
        f"data.stored_size={size}",
        f"data.resolution={size}",
        f"data.eval_resize={size}",
        "data.val_fraction=0",
        f"model.name={options.model}",
        "model.weights=null",
        "method=adafilter",
        f"train.global_batch={options.batch}",
        f"train.micro_batch={options.micro_batch or options.batch}",
        "train.epochs=1",
        "optim.warmup_epochs=0",
        f"engine.device={options.device}",
        "log.every=1",
        *options.words,
    ]
    if started(folder, "prepare", *words).wait(1800) != 0:
        fail(folder, "adafilter prepare failed")
    return words


# What is printed.


def tell_machine(session: Session, folder: Path) -> None:
    cuda = session.world.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU, {session.world.threads} threads"
    model, train = session.recipe.model.name, session.recipe.train
    size = sum(tensor.nbytes for _, tensor in session.full_state().tensors()) / 1e6
    print(
        f"{processor()}, {os.cpu_count()} cores, {device}; files on {file_system(folder)}; "
        f"Python {platform.python_version()}, torch {torch.__version__}; load average at the "
        f"start {load_average()}.\n"
        f"{model} with AdaFilter, {session.preprocess.crop} px, batch {train.global_batch} in "
        f"micro-batches of {train.micro_batch}, {train.precision}; state {size:.0f} MB before "
        "the first step."
    )


def tell_saves(times: Times, first: list[float], step: float, recipe: Checkpoint) -> None:
    write, extra = statistics.median(times["write"]), statistics.median(times["extra"])
    every, mtbi = seconds(str(recipe.every)), seconds(recipe.mtbi)

    def shares(stall: float, write: float = 0.0) -> tuple[str, str]:
        best = best_interval(stall, stall + write, mtbi)
        return f"{stall / every:.3%}", f"{stall / best:.2%} (every {best:.0f} s)"

    stalls = table(
        f"Training stands still for a save (a step: {median_and_extremes(times['step'])} ms)",
        *("", "stall, ms", "of a step", f"of all time, every={recipe.every}", "every=auto"),
    )
    for way in (OURS, WAITED, PLAIN, SYNCED):
        stall = statistics.median(times[way])
        of_all = shares(stall, write if way == OURS else 0.0)
        stalls.add(way, median_and_extremes(times[way]), f"{stall / step:.1%}", *of_all)
    lost = statistics.median(times[OURS]) + max(0.0, extra)
    stalls.add(f"{OURS}, slower steps included", "", "", *shares(lost, write))
    of_step = f"{statistics.median(first) / step:.1%}"
    stalls.add(f"{OURS}, the first of a run", median_and_extremes(first), of_step, "", "")
    for name, label in (("check", "look for NaN"), ("copy", "copy")):
        stalls.add(f"- of the stall: {label}", median_and_extremes(times[name]), "", "", "")
    stalls.print_markdown()

    steps = table("Steps while the writer writes", "", "")
    steps.add("writing takes", f"{median_and_extremes(times['write'])} ms")
    steps.add("steps that it touches", median_and_extremes(times["busy steps"], 1))
    steps.add("such a step, mean", f"{1000 * statistics.fmean(times['busy step']):.0f} ms")
    steps.add("a quiet step, mean", f"{1000 * statistics.fmean(times['step']):.0f} ms")
    steps.add("slower by, round by round", f"{median_and_extremes(times['slower'], 100)} %")
    steps.add("a save costs in slower steps", f"{median_and_extremes(times['extra'])} ms")
    steps.print_markdown()


def tell_sizes(last: Path, folder: Path) -> None:
    one = next(Checkpoints(last).steps())
    plain = (folder / "plain.pt").stat().st_size / 1e6
    frozen = volume((last / "checkpoints").glob("frozen.*"))
    sizes = table("Bytes on disk", "", "MB")
    sizes.add("a checkpoint", f"{volume([one]):.1f}")
    sizes.add("the frozen weights, twice a run", f"{frozen:.1f}")
    sizes.add("checkpoints/ at keep=2", f"{volume([last / 'checkpoints']):.1f}")
    sizes.add("a finished run, best/ and all", f"{volume([folder / 'run']):.1f}")
    sizes.add("torch.save of model and optimizer", f"{plain:.1f}")
    sizes.add("two of them", f"{2 * plain:.1f}")
    sizes.print_markdown()


def volume(places: Iterable[Path]) -> float:
    """Megabytes of the files in ``places``, folders or files."""
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def tell_start(times: Times, parts: dict[str, float]) -> None:
    megabytes = times["megabytes"][0]
    start = table("`adafilter resume`, from the start of the process", "", "s")
    for name, label in (
        ("claimed", "until the run is claimed"),
        ("imports", "- of it the imports, alone"),
        ("built and loaded", "from there to the event `start`"),
        ("load from disk", "- of it load and verify, alone, from the disk"),
        ("load from memory", "- the same out of the page cache"),
        ("warm-up and a step", "from there to the end of the first step"),
        ("first step", "**from process start to the end of the first new step**"),
        ("first row", f"to its row in metrics.jsonl, {DELAY} steps later"),
    ):
        start.add(label, median_and_extremes(times[name], 1.0, 2))
    start.add("building the session, alone (second in a process)", f"{parts['session']:.2f}")
    start.add("warm-up, alone", f"{parts['warm-up']:.2f}")
    for name in ("load from disk", "load from memory"):
        per = statistics.median(times[name]) / megabytes * 100
        start.add(f"{name}, per 100 MB", f"{per:.3f}")
    start.print_markdown()


def tell_agreement(times: Times, flags: list[float], values: int, step: float) -> None:
    pairs = zip(times["with"], times["without"], strict=True)
    more = statistics.median(a - b for a, b in pairs)
    reading = statistics.median(flags)
    backend = "NCCL" if times["backend"][0] else "gloo"
    title = f"Agreeing to stop ({backend}, 2 ranks, a vector of {values:,} statistics)"
    agreement = table(title, "", "µs")
    agreement.add("all-reduce without the flags", median_and_extremes(times["without"], 1e6))
    label = f"all-reduce with {FLAGS} more values"
    agreement.add(label, median_and_extremes(times["with"], 1e6))
    agreement.add("difference, median of pairs", f"{1e6 * more:.1f}")
    agreement.add("putting the flags in, reading them later", median_and_extremes(flags, 1e6))
    agreement.add("of a step", f"{(max(0.0, more) + reading) / step:.4%}")
    agreement.print_markdown()


def table(title: str, *columns: str) -> Table:
    return Table(title, [Column(name) for name in columns])


def file_system(folder: Path) -> str:
    """The kind of file system that a folder lies on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [m for m in mounts if folder.resolve().is_relative_to(m[1])]
    return max(inside, key=lambda mount: len(mount[1]))[2]


if __name__ == "__main__":
    main()
