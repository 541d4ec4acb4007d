"""What the loader's threads cost the thread that trains: its own CPU time, and waits for the lock.

    python benchmarks/loader_threads.py
    python benchmarks/loader_threads.py --pictures 2000 --steps 300 --workers 8

A step is many small operations, as a step on a GPU is for its host, on the next 32 pictures. The
same steps run on pictures that are in memory already, and on those of each loader, in turn. Of a
step, without its wait for pictures: CPU time of the training thread, and the time that it slept
for, which is the time that Python's lock was held elsewhere. Time in which it was ready and no core
was free is left out, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store, write_store
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe import Recipe

BATCH, OPERATIONS = 32, 1000


@dataclass(frozen=True)
class Clock:
    """Of this thread, in seconds: since an epoch, on a core, ready but without one."""

    wall: float
    cpu: float
    ready: float

    @staticmethod
    def now() -> Clock:
        ready = Path("/proc/thread-self/schedstat").read_text().split()[1]
        return Clock(time.perf_counter(), time.thread_time(), int(ready) / 1e9)

    def slept(self, before: Clock) -> float:
        """Seconds since then in which it neither ran nor could have."""
        return (self.wall - before.wall) - (self.cpu - before.cpu) - (self.ready - before.ready)


def step(pictures: Tensor, small: Tensor) -> None:
    """Many operations of a microsecond, each of which gives up the lock and takes it again."""
    small[: len(pictures)].copy_(pictures[:, 0, 0, 0])
    for _ in range(OPERATIONS):
        small.mul_(0.5)


def run(batches: Iterator[Tensor], steps: int) -> tuple[float, float]:
    """Means over the steps: CPU time, and time slept for, in seconds."""
    small = torch.zeros(BATCH)
    cpu, slept = [], []
    for pictures in itertools.islice(batches, steps):
        before = Clock.now()
        step(pictures, small)
        after = Clock.now()
        cpu.append(after.cpu - before.cpu)
        slept.append(after.slept(before))
    return statistics.mean(cpu), statistics.mean(slept)


def loaded(loader: TrainLoader) -> Generator[Tensor, None, None]:
    """Micro-batches of epoch after epoch."""
    for epoch in itertools.count():
        with loader.epoch(epoch) as batches:
            for batch in batches:
                yield batch.images


def train_loader(store: Path, kind: str, workers: int) -> TrainLoader:
    """A loader of crops of 224 px."""
    labels = Store(store).labels
    prepared = Prepared(store.parent, ["a"], "", store, store, labels, labels, 0.0, 1.0, 0)
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "data": {"name": "imagefolder", "loader": kind, "num_workers": workers},
            "train": {"global_batch": BATCH, "micro_batch": BATCH},
        }
    )
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", 224, 224)
    device = torch.device("cpu")
    return TrainLoader(prepared, recipe, preprocess, rank=0, world_size=1, device=device)


def make_up(path: Path, count: int) -> Path:
    """Pictures of 256 px with noise and slopes, as JPEG."""

    def picture(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        draws = np.random.default_rng(number)
        slope = np.add.outer(np.arange(256), np.arange(320)) / 576 * draws.uniform(50, 200)
        noise = draws.normal(0, 10, (256, 320, 3))
        return (slope[..., None] + noise).clip(0, 255).astype(np.uint8)

    records = [lambda number=number: (picture(number), 0) for number in range(count)]
    return write_store(path, records, num_workers=2).path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=500, help="how many to make up (500)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a pass (60)")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each (3)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loaders", nargs="*", default=["numba", "torchvision"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        store = make_up(Path(scratch) / "train", arguments.pictures)
        passes_by_name: dict[str, list[tuple[float, float]]] = {}
        for _ in range(arguments.repeats):
            memory = itertools.repeat(torch.zeros(BATCH, 3, 224, 224, dtype=torch.uint8))
            passes_by_name.setdefault("in memory", []).append(run(memory, arguments.steps))
            for kind in arguments.loaders:
                batches = loaded(train_loader(store, kind, arguments.workers))
                next(batches)
                passes_by_name.setdefault(kind, []).append(run(batches, arguments.steps))
                batches.close()
    base = statistics.median(cpu for cpu, _ in passes_by_name["in memory"])
    print(f"{arguments.workers} workers, {len(os.sched_getaffinity(0))} cores; of a step:")
    for name, passes in passes_by_name.items():
        cpu, slept = (statistics.median(values) for values in zip(*passes, strict=True))
        print(
            f"{name:12} CPU time {1e6 * cpu:6.0f} µs ({cpu / base:.3f}), "
            f"slept {1e6 * slept:6.0f} µs ({slept / base:.3f})"
        )


if __name__ == "__main__":
    main()
