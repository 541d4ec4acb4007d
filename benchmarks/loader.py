"""Loaders side by side, on the same pictures: images per second, and ours over the others.

    python benchmarks/loader.py                      # 3,000 made-up pictures, JPEG and raw
    python benchmarks/loader.py --store train.beton  # your own, as `adafilter prepare` wrote them
    python benchmarks/loader_table.py                # that and training, as a table in files

Every repeat runs all loaders once, one after the other, after a pass that is not counted; medians
over the repeats are printed, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from adafilter_dist.data.loading.ffcv_backend import Loader as StockLoader
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Format, Store, write_store
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe.schema import Recipe

Pass = Callable[[], int]
NAMES = ("ours, FFCV", "stock FFCV", "ours, torchvision", "ImageFolder + DataLoader")


@dataclass(frozen=True)
class Setting:
    size: int
    batch: int
    workers: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="a .beton file instead of made-up pictures")
    parser.add_argument("--pictures", type=int, default=3000, help="how many to make up (3000)")
    parser.add_argument("--stored-size", type=int, default=256, help="their shortest side (256)")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch (128)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5, help="counted passes of each (5)")
    given = parser.parse_args()
    # DataLoader's workers are forked, and numba's threads are running by then.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    setting = Setting(given.size, given.batch, given.workers)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {setting}")
    with tempfile.TemporaryDirectory() as scratch:
        if given.store is not None:
            compare(given.store, setting, given.repeats, Path(scratch))
            return
        for format in ("jpg", "raw"):
            path = make_up(Path(scratch) / format, given.pictures, given.stored_size, format)
            print(f"\n{format}, {path.stat().st_size / 2**20:.0f} MiB")
            compare(path, setting, given.repeats, Path(scratch) / f"{format}-files")


def compare(store: Path, setting: Setting, repeats: int, folder: Path) -> None:
    """Time all loaders on the pictures of a store and print a table."""
    speeds = measure(store, setting, repeats, folder)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    for name, found in speeds.items():
        spread = f"({min(found):.0f} to {max(found):.0f})"
        ratio = medians["ours, FFCV"] / medians[name]
        print(f"{name:26}{medians[name]:8.0f} images/s {spread:18} ours/this {ratio:5.2f}")


def measure(store: Path, setting: Setting, repeats: int, folder: Path) -> dict[str, list[float]]:
    """Images per second of each loader in each repeat; writes the pictures as files in folder."""
    loader, batches = ours(store, setting, "ffcv"), stock(store, setting)
    pillow, files = ours(store, setting, "torchvision"), image_folder(store, setting, folder)
    passes = dict(
        zip(
            NAMES,
            [an_epoch(loader), through(batches), an_epoch(pillow), through(files)],
            strict=True,
        )
    )
    for run in passes.values():
        run()
    speeds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            began = time.perf_counter()
            images = run()
            speeds[name].append(images / (time.perf_counter() - began))
    return speeds


def through(batches: Iterable[Any]) -> Pass:
    """A pass over a loader of (images, ...)."""
    return lambda: sum(len(images) for images, *_ in batches)


def an_epoch(loader: TrainLoader) -> Pass:
    """A pass over the next epoch of ours."""
    epochs = itertools.count()

    def run() -> int:
        with loader.epoch(next(epochs)) as batches:
            return sum(len(batch.images) for batch in batches)

    return run


def ours(
    path: Path, setting: Setting, kind: str, device: torch.device | None = None
) -> TrainLoader:
    """The training loader, micro-batches of a quarter of the batch."""
    store = Store(path)
    labels = store.labels
    prepared = Prepared(path.parent, ["a"], "", path, path, labels, labels, 0.0, 1.0, 0)
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "data": {"name": "imagefolder", "loader": kind, "num_workers": setting.workers},
            "train": {"global_batch": setting.batch, "micro_batch": setting.batch // 4},
        }
    )
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", setting.size, setting.size)
    device = device or torch.device("cpu")
    return TrainLoader(prepared, recipe, preprocess, rank=0, world_size=1, device=device)


def stock(path: Path, setting: Setting) -> Iterable[tuple[Any, ...]]:
    """FFCV as its users have it: its random crop and flip, whatever they draw."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    crop = RandomResizedCropRGBImageDecoder((setting.size, setting.size))
    steps: list[Any] = [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
    loader: Iterable[tuple[Any, ...]] = StockLoader(
        str(path),
        batch_size=setting.batch,
        num_workers=setting.workers,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": steps},
    )
    return loader


def image_folder(path: Path, setting: Setting, folder: Path) -> Iterable[tuple[Any, ...]]:
    """The pictures as JPEG files, read the way of torchvision's examples."""
    store = Store(path)
    (folder / "a").mkdir(parents=True)
    for number in range(len(store)):
        file = folder / "a" / f"{number}.jpg"
        encoded = store.encoded(number)
        if encoded[:2].tobytes() == b"\xff\xd8":
            file.write_bytes(encoded.tobytes())
        else:
            Image.fromarray(store.read(number)).save(file, quality=95)
    crop = v2.RandomResizedCrop(setting.size)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return torch.utils.data.DataLoader(
        ImageFolder(str(folder), transform),
        batch_size=setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        persistent_workers=True,
    )


def make_up(path: Path, count: int, side: int, format: Format) -> Path:
    """Pictures with waves, patches and noise, about as hard to decode as photographs."""

    def record(number: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
        return picture(number, side), number % 10

    records = [partial(record, number) for number in range(count)]
    return write_store(path, records, format=format, num_workers=2).path


def picture(number: int, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (H, W, 3) with the given shortest side."""
    draws = np.random.default_rng(number)
    sides = [side, int(draws.integers(side, 3 * side // 2))]
    height, width = sides if number % 2 else sides[::-1]
    y, x = np.mgrid[:height, :width].astype(np.float32) / side
    waves = [np.sin(x * draws.uniform(1, 40) + y * draws.uniform(1, 40)) for _ in range(3)]
    pixels = 128 + 70 * np.stack(waves, axis=2)
    for _ in range(20):
        top, left = draws.integers(0, side - 20, 2)
        pixels[top : top + draws.integers(8, 80), left : left + 60] = draws.integers(0, 256, 3)
    pixels += draws.normal(0, 5, (height, width, 1)).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
