"""A training step on a GPU: that nothing in it waits, and what bringing batches ahead is worth.

    python benchmarks/gpu_step.py
    python benchmarks/gpu_step.py model=resnet18 train.micro_batch=64 train.precision=bf16

The words are a recipe's, over a step of 8 micro-batches of 32 made-up pictures for a ResNet-50 with
AdaFilter. Three checks, each of which can fail (exit 1), then images per second:

1. the batches that the side stream brings are those of a plain copy, to the bit, while the GPU is
   kept busy, also where forwards of a step differ in size;
2. steps run while torch raises an error at whatever makes the host wait for the device;
3. the same two steps with 1, 2, 4, ... micro-batches in a forward give the same losses.

Exits 2 where there is no GPU.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from adafilter_dist.data.loading.batch import DeviceBatch, MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.prefetch import CudaPrefetcher, Prefetcher, forward_batches
from adafilter_dist.distributed import World, join_world, set_arithmetic
from adafilter_dist.engine import Engine, build_engine
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.models.gating.gated_conv import set_kernels
from adafilter_dist.models.ops.device_graph import Recorder
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.training.delayed_metrics import DelayedMetrics
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import forward_counts, kernels_of
from adafilter_dist.training.step import TrainingStep

CLASSES, STEPS, REPEATS = 100, 8, 5
WORDS = [
    *("model=resnet50", "model.weights=null", "train.global_batch=256", "train.micro_batch=32"),
    *("augment.mixup=0.2", "augment.cutmix=0.2", "ema.decay=0.99", "train.clip_norm=5"),
    *("method.gate.estimator=gumbel", "method.sparsity.kind=decide", "method.sparsity.weight=0.1"),
]


@dataclass
class Training:
    """A network with its engine, step and prefetcher, and batches for it in pinned memory."""

    recipe: Recipe
    step: TrainingStep
    engine: Engine
    transfer: BatchTransfer
    prefetcher: Prefetcher | None
    counts: list[int]
    pictures: list[MicroBatch]
    done: int = 0

    @classmethod
    def of(cls, recipe: Recipe, world: World, recorder: Recorder | None = None) -> Training:
        """Built, warmed up, at its first step."""
        torch.manual_seed(0)
        trainable = build_method(load_backbone(recipe, CLASSES), recipe)
        set_kernels(trainable.model, kernels_of(recipe))
        engine = build_engine(trainable.model, trainable.groups, recipe, world)
        step = TrainingStep(recipe, trainable, engine, world, None, recorder)
        preprocess, train = resolve_preprocess(recipe), recipe.train
        transfer = BatchTransfer(preprocess, world.device, engine.dtype, train.channels_last)
        counts = forward_counts(recipe, world)
        prefetcher = None
        if world.device.type == "cuda":
            prefetcher = CudaPrefetcher(transfer, max(counts) * train.micro_batch)
        step.warm_up(preprocess.crop)
        side, pin = preprocess.crop, prefetcher is not None
        pictures = list(made_up(train.micro_batches, train.micro_batch, side, pin))
        return cls(recipe, step, engine, transfer, prefetcher, counts, pictures)

    def run(self, steps: int, *, ahead: bool = True) -> list[float]:
        """Their losses; what the trainer does around a step, and the device idle at the end."""
        delayed, losses = DelayedMetrics(DELAY), []
        batches = (batch for _ in range(steps) for batch in self.pictures)
        prefetcher = self.prefetcher if ahead else None
        with forward_batches(batches, self.counts * steps, self.transfer, prefetcher) as forwards:
            for _ in range(steps):
                figures, _ = self.step.run(self.done, 0, forwards, 1.0, stop=False, save=False)
                delayed.push(self.done, figures)
                losses += [values[0] for _, values in delayed.ready(self.done)]
                self.done += 1
        return losses + [values[0] for _, values in delayed.drain()]

    def speed(self, *, ahead: bool) -> float:
        """Images a second."""
        began = time.perf_counter()
        self.run(STEPS, ahead=ahead)
        return STEPS * self.recipe.train.global_batch / (time.perf_counter() - began)


def made_up(count: int, size: int, side: int, pin: bool) -> Iterator[MicroBatch]:
    """Micro-batches of noise."""
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        pixels = torch.empty((size, side, side, 3), dtype=torch.uint8, pin_memory=pin)
        pixels.random_(0, 256, generator=generator)
        index = torch.arange(number * size, (number + 1) * size)
        numbers = [index % CLASSES, index % 3]
        labels, domain = (each.pin_memory() if pin else each for each in numbers)
        yield MicroBatch(pixels.permute(0, 3, 1, 2), labels, index, domain)


def require_same_batches(training: Training) -> None:
    """AssertionError unless the prefetcher brings what a plain copy does."""
    whole, size = training.pictures * 3, training.recipe.train.micro_batch
    counts = [2, 1, 1] * (len(whole) // 4)
    whole = whole[: sum(counts)]
    transfer, device = training.transfer, training.transfer.device
    prefetcher = CudaPrefetcher(transfer, 2 * size)
    busy = torch.randn(4096, 4096, device=device)

    def read(batch: DeviceBatch) -> list[torch.Tensor]:
        for _ in range(20):  # the host gets far ahead of the device
            busy @ busy
        assert batch.domain is not None
        return [each.clone() for each in (batch.images, batch.labels, batch.domain)]

    passes = []
    for one in (None, prefetcher, prefetcher):
        with forward_batches(iter(whole), counts, transfer, one) as forwards:
            passes.append([read(batch) for batch in forwards])
    plain, *brought = passes
    for other in brought:
        for batch, wanted in zip(other, plain, strict=True):
            assert all(torch.equal(one, two) for one, two in zip(batch, wanted, strict=True))


def run_without_waiting(training: Training) -> None:
    """RuntimeError, with a traceback to the line, where the host waits for the device."""
    training.run(2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.run(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def recipe_of(folder: Path, words: list[str]) -> Recipe:
    """The words over those of this benchmark; data are made up, so none are named."""
    file = folder / "gpu-step.yaml"
    file.write_text("name: gpu-step\ndata: imagefolder\n")
    return load_recipe([f"recipe={file}", *WORDS, *words])


def compare(folder: Path, words: list[str]) -> None:
    """Check and time 1, 2, 4 ... micro-batches in a forward, up to a whole step."""
    base = recipe_of(folder, words)
    set_arithmetic(base)
    together = 1
    wanted: list[float] = []
    with join_world(base) as world:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(words)}")
        while together <= base.train.micro_batches:
            word = f"train.micro_batches_per_forward={together}"
            training = Training.of(recipe_of(folder, [*words, word]), world)
            losses = training.run(2)
            wanted = wanted or losses
            apart = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))
            assert apart < 0.02, f"{word}: losses {losses}, alone {wanted}"
            if together == 1:
                require_same_batches(training)
            if base.train.precision == "fp16":
                print("fp16: whether a step is skipped is known on the host, which waits for it")
            else:
                run_without_waiting(training)
            pairs = [
                (training.speed(ahead=True), training.speed(ahead=False)) for _ in range(REPEATS)
            ]
            ahead, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
            peak = torch.cuda.max_memory_allocated() / 2**30
            print(
                f"{together:3} micro-batches a forward: {ahead:8.0f} images/s, {plain:8.0f} "
                f"without bringing ahead ({ahead / plain:.3f}), {peak:.1f} GiB at the peak"
            )
            del training
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            together *= 2


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks/gpu_step.py needs a GPU, and torch sees none here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(scratch), sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
