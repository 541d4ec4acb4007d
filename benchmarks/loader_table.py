"""Loaders on one machine, alone and in training: a CSV and a Markdown table of the ratios.

    python benchmarks/loader_table.py
    python benchmarks/loader_table.py --store train.beton --model resnet18 --out results

Alone: images per second of each loader, as benchmarks/loader.py has them. In training: real steps
of a small network on small crops, so that loading shows, fed by each loader, and the share of the
time in which the step waited for pictures. All in turn, medians over the repeats. The files are
named by hardware and date; in the CSV lie the lowest and the highest as well. Stock FFCV compiles
its pipelines for each crop size and file, which takes longer than the passes.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

# As the command `adafilter` does, before torch is imported: threads that spin starve the loaders.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench.reporting import hardware
from loader import NAMES, Setting, image_folder, make_up, measure, ours, stock

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.loading.prefetch import CudaPrefetcher, forward_batches
from adafilter_dist.data.stored.store import Store
from adafilter_dist.distributed import World, join_world, set_arithmetic
from adafilter_dist.engine import build_engine
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe import Recipe
from adafilter_dist.system.files import make_folder, write_text
from adafilter_dist.training.step import Figures, TrainingStep
from adafilter_dist.version import __version__

Epoch = Callable[[int], AbstractContextManager[Iterator[MicroBatch]]]
COLUMNS = (
    *("format", "what", "loader", "images_per_second", "lowest", "highest"),
    *("ours_over_this", "data_wait"),
)


@dataclass(frozen=True)
class Row:
    """One loader's passes: images per second, and the share of waiting where it fed a training."""

    format: str
    what: str
    loader: str
    speeds: list[float]
    waits: list[float]


class Training:
    """Steps of a network on whatever hands out micro-batches of a quarter of the batch."""

    def __init__(self, model: str, setting: Setting, classes: int, world: World) -> None:
        self._recipe = Recipe.model_validate(
            {
                "name": "benchmark",
                "data": {"name": "imagefolder", "resolution": setting.size},
                "model": {"name": model, "weights": None},
                "method": {"name": "finetune"},
                "train": {"global_batch": setting.batch, "micro_batch": setting.batch // 4},
                "engine": {"device": world.device.type},
            }
        )
        set_arithmetic(self._recipe)
        trainable = build_method(load_backbone(self._recipe, classes), self._recipe)
        engine = build_engine(trainable.model, trainable.groups, self._recipe, world)
        self._step = TrainingStep(self._recipe, trainable, engine, world, None)
        preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", setting.size, setting.size)
        self._given = BatchTransfer(preprocess, world.device, engine.dtype)
        cuda = world.device.type == "cuda"
        self._carrier = CudaPrefetcher(self._given, setting.batch // 4) if cuda else None
        self._step.warm_up(setting.size)
        self._epochs = 0

    def run(self, epoch: Epoch, steps: int) -> tuple[float, float]:
        """An epoch: images per second, and the share of the time spent waiting for pictures."""
        wait, number = 0.0, self._epochs
        self._epochs += 1
        began = time.perf_counter()
        with (
            epoch(number) as batches,
            forward_batches(batches, [1] * 4 * steps, self._given, self._carrier) as forwards,
        ):
            for step in range(steps):
                figures, _ = self._step.run(step, number, forwards, 1.0, stop=False, save=False)
                wait += Figures.of(step, figures.tolist()).wait
        took = time.perf_counter() - began
        return steps * self._recipe.train.global_batch / took, wait / took


def of_ours(loader: TrainLoader) -> Epoch:
    """Its epochs as they are."""
    return lambda epoch: loader.epoch(epoch)


def of_others(loader: Iterable[tuple[Any, ...]], setting: Setting, classes: int) -> Epoch:
    """A loader of (images, ...): its batches in quarters, with labels that nobody looks at."""
    labels = torch.arange(setting.batch) % classes

    def micro_batches() -> Iterator[MicroBatch]:
        quarter = setting.batch // 4
        for images, *_ in loader:
            for part, some in zip(images.split(quarter), labels.split(quarter), strict=True):
                yield MicroBatch(part, some, some)

    return lambda epoch: nullcontext(micro_batches())


def train(
    store: Path, setting: Setting, repeats: int, folder: Path, model: str, world: World
) -> dict[str, tuple[list[float], list[float]]]:
    """Speeds and shares of waiting of a training on each loader, in turn, one pass uncounted."""
    stored = Store(store)
    steps, classes = len(stored) // setting.batch, max(2, int(stored.labels.max()) + 1)
    training = Training(model, setting, classes, world)
    epochs = [
        of_ours(ours(store, setting, "ffcv", world.device)),
        of_others(stock(store, setting), setting, classes),
        of_ours(ours(store, setting, "torchvision", world.device)),
        of_others(image_folder(store, setting, folder), setting, classes),
    ]
    torch.set_num_threads(world.threads)  # stock FFCV has set another number
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in NAMES}
    for repeat in range(repeats + 1):
        for name, epoch in zip(NAMES, epochs, strict=True):
            speed, wait = training.run(epoch, steps)
            if repeat:
                found[name][0].append(speed)
                found[name][1].append(wait)
    return found


def rows_of(
    store: Path,
    format: str,
    setting: Setting,
    repeats: int,
    folder: Path,
    model: str,
    size: int,
    world: World,
) -> list[Row]:
    """All rows of one file of pictures; crops of ``size`` in training."""
    alone = measure(store, setting, repeats, folder / "alone")
    rows = [Row(format, "alone", name, speeds, []) for name, speeds in alone.items()]
    small = replace(setting, size=size)
    trained = train(store, small, repeats, folder / "training", model, world)
    return rows + [Row(format, "training", name, *found) for name, found in trained.items()]


def cells_of(rows: list[Row]) -> list[list[str]]:
    """The rows by column, as text; ratios are between rows of the same pictures and work."""
    best = {(r.format, r.what): statistics.median(r.speeds) for r in rows if r.loader == NAMES[0]}
    cells = []
    for row in rows:
        median = statistics.median(row.speeds)
        cells.append(
            [
                *(row.format, row.what, row.loader, f"{median:.1f}"),
                *(f"{min(row.speeds):.1f}", f"{max(row.speeds):.1f}"),
                f"{best[row.format, row.what] / median:.3f}",
                f"{statistics.median(row.waits):.3f}" if row.waits else "",
            ]
        )
    return cells


def write(folder: Path, rows: list[Row], facts: dict[str, str], hardware: str) -> Path:
    """CSV and Markdown in the folder; the Markdown's path."""
    make_folder(folder)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    words = re.sub(r"\((r|tm)\)|\bcpu\b|@", " ", hardware.lower())
    name = "loader-" + re.sub(r"[^a-z0-9.+-]+", "-", words).strip("-") + f"-{today}"
    cells = cells_of(rows)
    out = io.StringIO()
    out.writelines(f"# {key}: {value}\n" for key, value in facts.items())
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *cells])
    lines = [
        "| " + " | ".join(COLUMNS).replace("_", " ") + " |",
        "|---|---|---|" + "---:|" * (len(COLUMNS) - 3),
        *("| " + " | ".join(row) + " |" for row in cells),
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
    ]
    write_text(folder / f"{name}.csv", out.getvalue())
    write_text(folder / f"{name}.md", "\n".join(lines) + "\n")
    return folder / f"{name}.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="a .beton file instead of made-up pictures")
    parser.add_argument("--pictures", type=int, default=3000, help="how many to make up (3000)")
    parser.add_argument("--stored-size", type=int, default=256, help="their shortest side (256)")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--training-size", type=int, default=32, help="in training (32)")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch, of 4 quarters")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5, help="counted passes of each (5)")
    parser.add_argument("--model", default="timm/test_resnet", help="of the training, a small one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    # DataLoader's workers are forked, and numba's threads are running by then.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    setting = Setting(given.size, given.batch, given.workers)
    meeting = Recipe.model_validate({"name": "benchmark", "data": {"name": "imagefolder"}})
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, join_world(meeting) as world:
        stores = {"yours": given.store}
        if given.store is None:
            stores = {
                format: make_up(Path(scratch) / format, given.pictures, given.stored_size, format)
                for format in ("jpg", "raw")
            }
        for format, store in stores.items():
            folder = Path(scratch) / f"{format}-files"
            rows += rows_of(
                *(store, format, setting, given.repeats, folder),
                *(given.model, given.training_size, world),
            )
        device_name = hardware(world.device)
        facts = {
            "command": shlex.join(["python", *sys.argv]),
            "hardware": f"{device_name}, {os.cpu_count()} cores, {given.workers} workers, "
            f"{world.threads} threads of torch",
            "pictures": f"crops of {given.size} px, of {given.training_size} px in training, "
            f"batches of {given.batch}, "
            + (
                f"{given.store.name}"
                if given.store
                else f"{given.pictures} made up, stored at {given.stored_size} px"
            ),
            "training": f"fine-tuning of {given.model}, fp32, 4 micro-batches a step",
            "versions": ", ".join(
                [f"adafilter-dist {__version__}", f"Python {platform.python_version()}"]
                + [f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "ffcv")]
            ),
        }
        path = write(given.out, rows, facts, device_name)
    print(path.read_text())
    print(f"written: {path} and .csv")


if __name__ == "__main__":
    main()
