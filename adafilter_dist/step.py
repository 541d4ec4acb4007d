"""One training step: micro-batches forward and backward, one reduction, one update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.device import to_device
from adafilter_dist.data.loader import MicroBatch
from adafilter_dist.data.mix import mix
from adafilter_dist.data.order import share
from adafilter_dist.draws import keyed_draws
from adafilter_dist.ema import Ema
from adafilter_dist.engine import Engine, World
from adafilter_dist.methods import Built
from adafilter_dist.models import statistics
from adafilter_dist.models.preprocess import Preprocess
from adafilter_dist.recipe import Recipe
from adafilter_dist.schedule import rate_factor

FIGURES = ("loss", "penalty", "accuracy", "wait", "stop", "save", "gate_mean", "gate_variance")
"""What a step measures, in the order of its vector; sums over ranks of per-micro-batch means."""

_LOCAL = 6  # the first six are summed over ranks with the running statistics


@dataclass(frozen=True)
class Figures:
    """Means over the micro-batches of one step; ``stop`` and ``save`` count ranks that ask."""

    step: int
    loss: float
    penalty: float
    accuracy: float
    wait: float
    stop: float
    save: float
    gate_mean: float
    gate_variance: float

    @classmethod
    def of(cls, step: int, values: list[float]) -> Figures:
        """From the vector that :class:`TrainingStep` gives."""
        return cls(step, *values)


class TrainingStep:
    """The arithmetic of a step, a function of the recipe and not of the world size.

    The global batch is ``train.micro_batches`` micro-batches, shared over the ranks. Batch
    statistics, penalties and draws are those of one micro-batch; gradients, figures and the update
    of running statistics are means over all of them, applied once.
    """

    def __init__(
        self,
        recipe: Recipe,
        built: Built,
        engine: Engine,
        preprocess: Preprocess,
        world: World,
        ema: Ema | None,
    ) -> None:
        self._recipe = recipe
        self._built = built
        self._engine = engine
        self._preprocess = preprocess
        self._world = world
        self._ema = ema
        self._share = share(recipe.train.micro_batches, world.rank, world.world_size)

    def run(
        self,
        step: int,
        epoch: int,
        batches: Iterator[MicroBatch],
        rate: float,
        *,
        stop: bool,
        save: bool,
    ) -> tuple[Tensor, bool]:
        """Do step ``step``; returns its figures (on the device) and whether fp16 skipped it."""
        engine, train = self._engine, self._recipe.train
        engine.model.train()
        figures = torch.zeros(_LOCAL, dtype=engine.dtype, device=self._world.device)
        wait = 0.0
        for micro_batch in self._share:
            began = time.perf_counter()
            batch = next(batches)
            wait += time.perf_counter() - began
            last = micro_batch == self._share[-1]
            with (
                engine.micro_batch(last=last),
                keyed_draws(self._recipe.seed, step, micro_batch, self._world.device),
            ):
                loss, penalty, accuracy = self._forward(batch, step, epoch, micro_batch)
                engine.backward(loss + penalty)
            figures[:3] += torch.stack([loss.detach(), penalty.detach(), accuracy])
        # Filled one by one: a tensor made of them on the host would wait for the device.
        for place, value in enumerate((wait / self._world.world_size, stop, save), start=3):
            figures[place].fill_(value)

        flat = torch.cat([figures, statistics.collect(engine.model)])
        flat = engine.reduce(flat)
        taken = engine.step(rate)
        if taken:
            statistics.apply(engine.model, flat[_LOCAL:] / train.micro_batches)
            if self._ema is not None:
                self._ema.update()
        else:
            statistics.discard(engine.model)
        flat[:3] /= train.micro_batches
        return torch.cat([flat[:_LOCAL], self._gates()]), not taken

    def _forward(
        self, batch: MicroBatch, step: int, epoch: int, micro_batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        recipe, engine = self._recipe, self._engine
        images, labels = to_device(
            batch,
            self._preprocess,
            self._world.device,
            engine.dtype,
            recipe.train.channels_last,
        )
        images, targets = mix(
            images,
            labels,
            batch.index,
            recipe.augment,
            seed=recipe.seed,
            epoch=epoch,
            step=step,
            micro_batch=micro_batch,
            num_classes=self._built.num_classes,
        )
        logits = engine.forward(images)
        smoothing = recipe.optim.label_smoothing
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        penalty = self._built.penalty().to(loss.dtype)
        accuracy = (logits.detach().argmax(1) == labels).to(loss.dtype).mean()
        return loss, penalty, accuracy

    def _gates(self) -> Tensor:
        gate = self._built.gates
        if gate is None:
            return torch.zeros(2, dtype=self._engine.dtype, device=self._world.device)
        return torch.stack([gate.last_mean.mean(), gate.last_variance.mean()]).to(
            self._engine.dtype
        )

    def warm_up(self, size: int) -> None:
        """Run the engine's throw-away pass on noise of (micro_batch, 3, size, size)."""
        shape = (self._recipe.train.micro_batch, 3, size, size)

        def loss() -> Tensor:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(shape, generator=generator, dtype=self._engine.dtype)
            self._engine.model.train()
            total = self._engine.forward(images.to(self._world.device)).sum()
            return total * 0 + self._built.penalty().to(total.dtype) * 0

        with keyed_draws(0, 0, 0, self._world.device):
            self._engine.warm_up(loss)
        statistics.discard(self._engine.model)


def rate_of(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The schedule's factor at ``step``."""
    total = steps_per_epoch * recipe.train.epochs
    return rate_factor(recipe.optim, step, steps_per_epoch, total)
