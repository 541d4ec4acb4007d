"""Loaders that feed a training: the steps' speed, and the share of the time that they waited.

    python benchmarks/loader_training.py
    python benchmarks/loader_training.py --store train.beton --model resnet18 --out results

Real steps of a small network on small crops, so that loading shows, on JPEG and on raw records, fed
by each loader in turn, and by pictures in memory; medians over the repeats.
benchmarks/loader_table.py has the loaders alone. Stock FFCV compiles its pipelines for each crop
size and file, which takes longer than the passes.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path

# As the command `adafilter` does, before torch is imported: threads that spin starve the loaders.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench.loader_pictures import make_up, spread
from bench.loaders import Epochs, Work, image_folder, stock_ffcv, train_loader
from bench.reporting import Column, Table, hardware, slug

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.loading.prefetch import CudaPrefetcher, forward_batches
from adafilter_dist.data.stored.store import Format, Store
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
COLUMNS = [
    Column("format"),
    Column("loader"),
    Column("pictures/s", 0),
    Column("lowest", 0),
    Column("highest", 0),
    Column("ours over this", 2),
    Column("data wait, %", 1),
]


class Training:
    """Steps of a network on whatever hands out micro-batches of a quarter of the batch."""

    def __init__(self, model: str, work: Work, classes: int, world: World) -> None:
        self._recipe = Recipe.model_validate(
            {
                "name": "benchmark",
                "data": {"name": "imagefolder", "resolution": work.size},
                "model": {"name": model, "weights": None},
                "method": {"name": "finetune"},
                "train": {"global_batch": work.batch, "micro_batch": work.batch // 4},
                "engine": {"device": world.device.type},
            }
        )
        set_arithmetic(self._recipe)
        trainable = build_method(load_backbone(self._recipe, classes), self._recipe)
        engine = build_engine(trainable.model, trainable.groups, self._recipe, world)
        self._step = TrainingStep(self._recipe, trainable, engine, world, None)
        preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", work.size, work.size)
        self._given = BatchTransfer(preprocess, world.device, engine.dtype)
        cuda = world.device.type == "cuda"
        self._carrier = CudaPrefetcher(self._given, work.batch // 4) if cuda else None
        self._step.warm_up(work.size)
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


def of_others(epochs: Epochs, work: Work) -> Epoch:
    """Batches of (images, labels) in quarters."""

    def micro_batches(number: int) -> Iterator[MicroBatch]:
        quarter = work.batch // 4
        for images, labels in epochs(number):
            for part, some in zip(images.split(quarter), labels.split(quarter), strict=True):
                yield MicroBatch(part, some, some)

    return lambda number: nullcontext(micro_batches(number))


def of_memory(work: Work, steps: int) -> Epoch:
    """The same pictures again and again."""
    quarter = work.batch // 4
    shape = (quarter, work.size, work.size, 3)
    images = torch.zeros(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    index = torch.arange(quarter)
    one = MicroBatch(images.permute(0, 3, 1, 2), torch.zeros_like(index), index)
    return lambda number: nullcontext(itertools.repeat(one, 4 * steps))


def train(
    work: Work, repeats: int, model: str, world: World
) -> dict[str, list[tuple[float, float]]]:
    """Speed and share of waiting of a training on each loader, in turn, one pass uncounted."""
    stored = Store(work.pictures.store)
    steps, classes = len(stored) // work.batch, max(2, int(stored.labels.max()) + 1)
    training = Training(model, work, classes, world)
    epochs = {
        "ours, numba": of_ours(train_loader(work, "numba", world.device)),
        "ours, FFCV": of_ours(train_loader(work, "ffcv", world.device)),
        "stock FFCV": of_others(stock_ffcv(work), work),
        "ours, torchvision": of_ours(train_loader(work, "torchvision", world.device)),
        "ImageFolder, Pillow": of_others(image_folder(work), work),
        "in memory": of_memory(work, steps),
    }
    gpu = world.device.type == "cuda" and importlib.util.find_spec("torchcodec") is not None
    if gpu and not stored.index[:, 4].any():  # raw pixels need no decoding
        epochs["ours, nvJPEG"] = of_ours(train_loader(work, "nvjpeg", world.device))
    torch.set_num_threads(world.threads)  # stock FFCV has set another number
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
    for repeat in range(repeats + 1):
        for name, epoch in epochs.items():
            speed_and_wait = training.run(epoch, steps)
            if repeat:
                measured[name].append(speed_and_wait)
    return measured


def add_rows(table: Table, format: str, measured: dict[str, list[tuple[float, float]]]) -> None:
    """Medians of each loader, and those of the first over them."""
    best = statistics.median(speed for speed, _ in next(iter(measured.values())))
    for name, passes in measured.items():
        speeds, waits = zip(*passes, strict=True)
        median = statistics.median(speeds)
        row = (format, name, median, min(speeds), max(speeds), best / median)
        table.add(*row, 100 * statistics.median(waits))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="a .beton file instead of made-up pictures")
    parser.add_argument("--pictures", type=int, default=3000, help="how many to make up (3000)")
    parser.add_argument("--stored-size", type=int, default=256, help="their shortest side (256)")
    parser.add_argument("--size", type=int, default=32, help="side of the crops (32)")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch, of 4 quarters")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5, help="counted passes of each (5)")
    parser.add_argument("--model", default="timm/test_resnet", help="a small one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    # DataLoader's workers are forked, and numba's threads are running by then.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    meeting = Recipe.model_validate({"name": "benchmark", "data": {"name": "imagefolder"}})
    table = Table("Loaders that feed a training", COLUMNS)
    formats: tuple[Format, ...] = ("jpg", "raw")
    with tempfile.TemporaryDirectory() as scratch, join_world(meeting) as world:
        stores = {"yours": options.store}
        if options.store is None:
            stores = {
                format: make_up(
                    Path(scratch) / format, options.pictures, options.stored_size, format
                )
                for format in formats
            }
        for format, store in stores.items():
            pictures = spread(store, Path(scratch) / f"{format}-files")
            work = Work(pictures, options.size, options.batch, options.workers)
            add_rows(table, format, train(work, options.repeats, options.model, world))
        name, threads = hardware(world.device), world.threads
    made_up = f"{options.pictures:,} made up, stored at {options.stored_size} px"
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"{name}, {os.cpu_count()} cores, {options.workers} workers, {threads} threads "
        "of torch",
        "pictures": f"{options.store.name if options.store else made_up}; "
        f"crops of {options.size} px, batches of {options.batch}",
        "training": f"fine-tuning of {options.model}, fp32, 4 micro-batches a step",
        "versions": ", ".join(
            [f"adafilter-dist {__version__}", f"Python {platform.python_version()}"]
            + [f"{each} {metadata.version(each)}" for each in ("torch", "torchvision", "ffcv")]
        ),
    }
    make_folder(options.out)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    path = options.out / f"loader-training-{slug(name)}-{today}.md"
    lines = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    write_text(path, f"{table.markdown()}\n{lines}")
    write_text(path.with_name(f"{path.stem}.csv"), table.csv(facts))
    print(path.read_text())
    print(f"written: {path} and .csv")


if __name__ == "__main__":
    main()
