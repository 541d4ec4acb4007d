"""What the loader's threads cost the thread that trains: steps on its pictures, and on others.

    python benchmarks/loader_threads.py
    python benchmarks/loader_threads.py --pictures 2000 --steps 300 --workers 8 --models resnet18

A step is what the host does for a training step of AdaFilter on a GPU, as in host_work.py: Python,
autograd, dispatch and prepared launches, which compute nothing. It never waits for a GPU. It takes
the next 32 pictures of 224 px from a thread that brings them, as on a GPU. The same steps run on
pictures that are in memory already, and on those of each loader, in turn; and on pictures in
memory while another process decodes as many. That shares cores and caches with the training thread,
but not Python's lock. Columns, of a step:

- step: its time on the clock with its wait for pictures, and that over the time on pictures in
  memory. It says something only where nothing else runs.
- CPU: of the training thread, and that over the same in memory. A busy machine changes it little.
- lock: time that the training thread slept for within the step: Python's lock was held elsewhere.
- wait: for pictures.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from bench.absent_gpu import absent_gpu
from bench.reporting import Column, Table
from host_work import OURS, PICTURES, SIZE, Step, variants

from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer, normalise
from adafilter_dist.data.loading.loader import TrainLoader
from adafilter_dist.data.loading.prefetch import AHEAD, forward_batches
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store, write_store
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe import Recipe

BATCH, CROP = 32, 224
MEMORY, ELSEWHERE = "in memory", "in memory; a process decodes"
PREPROCESS = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", CROP, CROP)
COLUMNS = [
    Column("model"),
    Column("pictures come from"),
    Column("step, ms", 2),
    Column("over memory", 3),
    Column("CPU, ms", 2),
    Column("CPU over memory", 3),
    Column("lock, ms", 3),
    Column("wait, ms", 3),
]


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


@dataclass(frozen=True)
class Cost:
    """Means over the steps of a pass, in seconds."""

    wall: float
    cpu: float
    slept: float
    waited: float


class HostPrefetcher:
    """What `CudaPrefetcher` asks of the host for a batch, on a corner of a few of its pictures."""

    def __init__(self) -> None:
        self._images = [torch.empty(PICTURES, 3, SIZE, SIZE) for _ in range(AHEAD + 1)]
        self._labels = [torch.empty(BATCH, dtype=torch.int64) for _ in range(AHEAD + 1)]

    def begin(self) -> None:
        """Nothing to wait for, here and below."""

    def done_with(self, place: int) -> None:
        pass

    def bring(self, place: int, parts: Sequence[MicroBatch]) -> DeviceBatch:
        (part,) = parts
        corner = part.images[:PICTURES, :, :SIZE, :SIZE].clone()
        normalise(corner, PREPROCESS, self._images[place])
        self._labels[place].copy_(part.labels)
        return DeviceBatch(self._images[place], self._labels[place], part.index, 1)

    def hand_over(self, place: int) -> None:
        pass

    def end(self) -> None:
        pass


def run(step: Step, batches: Iterator[MicroBatch], steps: int) -> Cost:
    """Steps on the next micro-batches, after one that is not counted."""
    transfer = BatchTransfer(PREPROCESS, torch.device("cpu"))
    walls, cpus, slept, waited = [], [], [], []
    with forward_batches(batches, [1] * (steps + 1), transfer, HostPrefetcher()) as forwards:
        for number in range(steps + 1):
            began = Clock.now()
            step.images = next(forwards).images
            ready = Clock.now()
            step.run(lambda part: part())
            done = Clock.now()
            if number:
                walls.append(done.wall - began.wall)
                cpus.append(done.cpu - began.cpu)
                slept.append(done.slept(ready))
                waited.append(ready.wall - began.wall)
    return Cost(*map(statistics.mean, (walls, cpus, slept, waited)))


def in_memory() -> Iterator[MicroBatch]:
    """The same pictures again and again."""
    images = torch.zeros(BATCH, CROP, CROP, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    index = torch.arange(BATCH)
    return itertools.repeat(MicroBatch(images, index, index))


def loaded(loader: TrainLoader) -> Generator[MicroBatch, None, None]:
    """Micro-batches of epoch after epoch."""
    for epoch in itertools.count():
        with loader.epoch(epoch) as batches:
            yield from batches


def decode_when_told(store: Path, kind: str, workers: int, told: Connection) -> None:
    """Decode a micro-batch for each byte that comes, in a process of its own."""
    torch.set_num_threads(1)
    with closing(loaded(train_loader(store, kind, workers))) as batches:
        next(batches)
        told.send_bytes(b"ready")
        while told.recv_bytes() != b"end":
            next(batches)


@contextmanager
def decoding_process(store: Path, kind: str, workers: int) -> Iterator[Connection]:
    """What tells it to decode the next micro-batch."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=decode_when_told, args=(store, kind, workers, theirs)
    )
    process.start()
    try:
        ours.recv_bytes()
        yield ours
        ours.send_bytes(b"end")
    finally:
        process.join(20)
        process.kill()


def paced(process: Connection) -> Iterator[MicroBatch]:
    """Pictures in memory; the process decodes a micro-batch for each."""
    for batch in in_memory():
        process.send_bytes(b"next")
        yield batch


def train_loader(store: Path, kind: str, workers: int) -> TrainLoader:
    """A loader of crops."""
    labels = Store(store).labels
    prepared = Prepared(store.parent, ["a"], "", store, store, labels, labels, 0.0, 1.0, 0)
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "data": {"name": "imagefolder", "loader": kind, "num_workers": workers},
            "train": {"global_batch": BATCH, "micro_batch": BATCH},
        }
    )
    device = torch.device("cpu")
    return TrainLoader(prepared, recipe, PREPROCESS, rank=0, world_size=1, device=device)


def make_up(path: Path, count: int) -> Path:
    """Pictures of 256 px with noise and slopes, as JPEG."""

    def picture(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        draws = np.random.default_rng(number)
        slope = np.add.outer(np.arange(256), np.arange(320)) / 576 * draws.uniform(50, 200)
        noise = draws.normal(0, 10, (256, 320, 3))
        return (slope[..., None] + noise).clip(0, 255).astype(np.uint8)

    records = [lambda number=number: (picture(number), 0) for number in range(count)]
    return write_store(path, records, num_workers=2).path


def measure(
    step: Step, loaders: dict[str, TrainLoader], process: Connection, steps: int, repeats: int
) -> dict[str, list[Cost]]:
    """Passes in turn: of pictures in memory, then of each loader."""
    passes: dict[str, list[Cost]] = {}
    for _ in range(repeats):
        passes.setdefault(MEMORY, []).append(run(step, in_memory(), steps))
        passes.setdefault(ELSEWHERE, []).append(run(step, paced(process), steps))
        for kind, loader in loaders.items():
            with closing(loaded(loader)) as batches:
                passes.setdefault(kind, []).append(run(step, batches, steps))
    return passes


def over_memory(passes: dict[str, list[Cost]], kind: str, name: str) -> float:
    """The median of the rounds' own ratios: the machine's speed changes between them."""
    pairs = zip(passes[kind], passes[MEMORY], strict=True)
    return statistics.median(getattr(cost, name) / getattr(base, name) for cost, base in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=500, help="how many to make up (500)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a pass (20)")
    parser.add_argument("--repeats", type=int, default=12, help="passes of each (12)")
    parser.add_argument("--workers", type=int, default=1, help="decoding threads (1)")
    parser.add_argument("--models", nargs="*", default=["resnet50", "resnet18"])
    parser.add_argument("--loaders", nargs="*", default=["numba", "torchvision"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    table = Table("What the loader's threads cost the training thread", COLUMNS)
    try:
        with ExitStack() as more:
            scratch = more.enter_context(tempfile.TemporaryDirectory())
            store = make_up(Path(scratch) / "train", arguments.pictures)
            loaders = {
                kind: train_loader(store, kind, arguments.workers) for kind in arguments.loaders
            }
            torch.set_num_threads(1)  # FFCV has set another number
            process = more.enter_context(decoding_process(store, "numba", arguments.workers))
            for model in arguments.models:
                net = variants(model)[OURS]
                with absent_gpu():
                    step = Step(net, 1)
                    for _ in range(2):  # after the first, it knows the layers that it stacks
                        step.run(lambda part: part())
                    passes = measure(step, loaders, process, arguments.steps, arguments.repeats)
                for name, costs in passes.items():
                    wall, cpu, slept, waited = (
                        1e3 * statistics.median(getattr(cost, field) for cost in costs)
                        for field in Cost.__dataclass_fields__
                    )
                    ratios = [over_memory(passes, name, field) for field in ("wall", "cpu")]
                    table.add(model, name, wall, ratios[0], cpu, ratios[1], slept, waited)
    finally:
        torch.set_flush_denormal(False)
    table.print_markdown()
    print(f"\n{arguments.workers} decoding threads, {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
