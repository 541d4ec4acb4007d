"""One training step: micro-batches forward and backward, one all-reduce, one update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.loading.batch import DeviceBatch
from adafilter_dist.data.loading.mix import mix_each
from adafilter_dist.data.loading.order import micro_batches_of_rank
from adafilter_dist.distributed import World
from adafilter_dist.engine import Engine
from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.control_gates import any_domain, set_domains
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.training.ema import ModelEma
from adafilter_dist.training.gate_gradient import GateGradient
from adafilter_dist.training.lr_schedule import lr_factor
from adafilter_dist.training.seeding import seeded_draws

_LOCAL = 6  # the first six are summed over ranks with the running statistics


@dataclass(frozen=True)
class Figures:
    """Means over the micro-batches of one step; ``stop`` and ``save`` count ranks that ask.

    In the order of the vector that a step sums over the ranks.
    ``gate_gradient`` is NaN where it was not measured (`GateGradient`).
    """

    step: int
    loss: float
    penalty: float
    accuracy: float
    wait: float
    stop: float
    save: float
    gate_mean: float
    gate_variance: float
    gate_gradient: float

    @classmethod
    def of(cls, step: int, values: list[float]) -> Figures:
        """From the vector that :class:`TrainingStep` gives."""
        return cls(step, *values)


class TrainingStep:
    """The arithmetic of a step, a function of the recipe and not of the world size.

    The global batch is ``train.micro_batches`` micro-batches, divided among the ranks. Batch
    statistics, penalties and random draws belong to one micro-batch each; gradients, figures and
    the update of running statistics are means over all of them, applied once. Several micro-batches
    may share a forward (``train.micro_batches_per_forward``), which gives the same numbers.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainable: TrainableModel,
        engine: Engine,
        world: World,
        ema: ModelEma | None,
    ) -> None:
        self._recipe = recipe
        self._trainable = trainable
        self._engine = engine
        self._world = world
        self._ema = ema
        whole = not (isinstance(recipe.engine, DeepSpeed) and recipe.engine.zero_stage)
        self._gradient = GateGradient(trainable) if whole and trainable.gates is not None else None
        train = recipe.train
        mine = micro_batches_of_rank(train.micro_batches, world.rank, world.world_size)
        self._forwards = forwards_of(mine, train.together)

    def run(
        self,
        step: int,
        epoch: int,
        batches: Iterator[DeviceBatch],
        rate: float,
        *,
        stop: bool,
        save: bool,
        gradient: bool = False,
    ) -> tuple[Tensor, bool]:
        """Do step ``step``; returns its figures (on the device) and whether fp16 skipped it.

        With ``gradient`` the gradient of the gate is measured beside that of F.
        """
        engine, train = self._engine, self._recipe.train
        engine.model.train()
        figures = torch.zeros(_LOCAL, dtype=engine.dtype, device=self._world.device)
        wait = 0.0
        progress = self._world.progress

        # Forward and backward of this rank's micro-batches; gradients add up in the engine.
        for micro_batches in self._forwards:
            progress.move("waiting for a batch", step)
            began = time.perf_counter()
            batch = next(batches)
            wait += time.perf_counter() - began
            last = micro_batches == self._forwards[-1]
            progress.move("forward")
            with (
                engine.micro_batch(last=last),
                seeded_draws(self._recipe.seed, step, micro_batches, self._world.device),
            ):
                # Means over the forward, times their number: sums over its micro-batches.
                loss, penalty, accuracy = self._forward(batch, step, epoch, micro_batches)
                # With the last one, gradients are reduced: the first wait for other ranks.
                (progress.enter if last else progress.move)("backward")
                engine.backward((loss + penalty) * batch.count)
            means = torch.stack([loss.detach(), penalty.detach(), accuracy])
            figures[:3] += means * batch.count
        # Filled one by one: a tensor made of them on the host would wait for the device.
        for place, value in enumerate((wait / self._world.world_size, stop, save), start=3):
            figures[place].fill_(value)

        # One all-reduce of the figures and the batch statistics of all gated layers. It also
        # carries the wishes to stop and to save, so that every rank learns of them at once.
        flat = torch.cat([figures, step_statistics.collect(engine.model)])
        progress.enter("reduction of figures")
        flat = engine.reduce(flat)
        progress.move("update")

        ratio = self._gradient.ratio() if gradient and self._gradient is not None else None

        # The update. A step whose fp16 gradients overflowed leaves everything as it was.
        if self._trainable.rule is not None:
            self._trainable.rule.begin(epoch)
        taken = engine.step(rate)
        if taken:
            step_statistics.apply(engine.model, flat[_LOCAL:] / train.micro_batches)
            if self._ema is not None:
                self._ema.update()
        else:
            step_statistics.discard(engine.model)
        flat[:3] /= train.micro_batches
        return torch.cat([flat[:_LOCAL], self._gates(ratio)]), not taken

    def _forward(
        self, batch: DeviceBatch, step: int, epoch: int, micro_batches: range
    ) -> tuple[Tensor, Tensor, Tensor]:
        recipe, engine = self._recipe, self._engine
        images, targets = batch.images, batch.targets
        if targets is None:
            images, targets = mix_each(
                images,
                batch.labels,
                batch.index,
                recipe.augment,
                seed=recipe.seed,
                epoch=epoch,
                step=step,
                micro_batches=micro_batches,
                num_classes=self._trainable.num_classes,
            )
        if batch.domain is not None:
            set_domains(engine.model, batch.domain)
        with batch.skip():
            logits = engine.forward(images)
        smoothing = recipe.optim.label_smoothing
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        penalty = self._trainable.penalty(batch.labels).to(loss.dtype)
        accuracy = (logits.detach().argmax(1) == batch.labels).to(loss.dtype).mean()
        return loss, penalty, accuracy

    def _gates(self, ratio: Tensor | None) -> Tensor:
        gate = self._trainable.gates
        if gate is None:
            return torch.zeros(3, dtype=self._engine.dtype, device=self._world.device)
        mean = gate.last_mean.mean()
        figures = mean, gate.last_variance.mean(), mean * math.nan if ratio is None else ratio
        return torch.stack([one.to(self._engine.dtype) for one in figures])

    def warm_up(self, size: int) -> None:
        """Run the engine's throw-away pass on noise, as large as the first forward of a step."""
        first = self._forwards[0]
        shape = (len(first) * self._recipe.train.micro_batch, 3, size, size)

        def loss() -> Tensor:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(shape, generator=generator, dtype=self._engine.dtype)
            self._engine.model.train()
            total = self._engine.forward(images.to(self._world.device)).sum()
            labels = torch.zeros(shape[0], dtype=torch.int64, device=self._world.device)
            return total * 0 + self._trainable.penalty(labels).to(total.dtype) * 0

        with (
            seeded_draws(0, 0, first, self._world.device),
            any_domain(self._engine.model, shape[0]),
        ):
            self._engine.warm_up(loss)
        step_statistics.discard(self._engine.model)


def forwards_of(micro_batches: range, at_once: int) -> list[range]:
    """Groups a rank's micro-batches into forwards of ``at_once``; the last may have fewer."""
    return [
        micro_batches[first : first + at_once] for first in range(0, len(micro_batches), at_once)
    ]


def lr_factor_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The schedule's factor at ``step``."""
    total = steps_per_epoch * recipe.train.epochs
    return lr_factor(recipe.optim, step, steps_per_epoch, total)
