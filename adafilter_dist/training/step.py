"""One training step: micro-batches forward and backward, one all-reduce, one update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from adafilter_dist.models.ops.device_graph import Recorder
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.training.ema import ModelEma
from adafilter_dist.training.gate_gradient import GateGradient
from adafilter_dist.training.lr_schedule import lr_factor
from adafilter_dist.training.seeding import seeded_draws
from adafilter_dist.training.step_graph import Inputs, StepGraphs

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
    may share a forward (``train.micro_batches_per_forward``), which gives the same numbers. With a
    ``recorder`` forward and backward are recorded and replayed, which gives the same bits.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainable: TrainableModel,
        engine: Engine,
        world: World,
        ema: ModelEma | None,
        recorder: Recorder | None = None,
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
        self._graphs: StepGraphs | None = None
        if recorder is not None and engine.recordable is not None:
            self._graphs = StepGraphs(engine.recordable, engine.model, recorder)

    def new_notices(self) -> list[str]:
        """Lines for the user since the last call."""
        if self._graphs is None:
            return []
        lines, self._graphs.notices = self._graphs.notices, []
        return lines

    @property
    def recorded(self) -> bool:
        """Whether forwards are replayed by now (``train.graph``)."""
        return self._graphs is not None and self._graphs.recorded

    @property
    def memory_to_come(self) -> int:
        """Bytes that recording will add to what the steps so far have taken."""
        return 0 if self._graphs is None else self._graphs.memory_to_come(len(self._forwards))

    def network_changed(self) -> None:
        """To be called where the network computes something else from now on."""
        if self._graphs is not None:
            self._graphs.forget()

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
            inputs = self._inputs(batch, step, epoch, micro_batches)
            means = self._recorded(inputs, step, micro_batches, last=last)
            if means is None:
                means = self._eager(batch, inputs, step, micro_batches, last=last)
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

    def _eager(
        self, batch: DeviceBatch, inputs: Inputs, step: int, micro_batches: range, *, last: bool
    ) -> Tensor:
        """Forward and backward; returns the means of loss, penalty and accuracy (3,)."""
        engine, progress = self._engine, self._world.progress
        with (
            engine.micro_batch(last=last),
            seeded_draws(self._recipe.seed, step, micro_batches, self._world.device),
        ):
            with batch.skip():
                loss, penalty, accuracy = self._losses(inputs, engine.forward)
            # With the last one, gradients are reduced: the first wait for other ranks.
            (progress.enter if last else progress.move)("backward")
            # Means over the forward, times their number: sums over its micro-batches.
            engine.backward((loss + penalty) * batch.count)
        return torch.stack([loss.detach(), penalty.detach(), accuracy])

    def _recorded(
        self, inputs: Inputs, step: int, micro_batches: range, *, last: bool
    ) -> Tensor | None:
        """The same by a recording; None where there is none for these inputs."""
        graphs, recordable, count = self._graphs, self._engine.recordable, len(micro_batches)
        if graphs is None or recordable is None or not graphs.ready(inputs, count):
            return None
        device, progress = self._world.device, self._world.progress
        own = graphs.generators(count, device)

        def draws(*, other: bool = False) -> AbstractContextManager[None]:
            # Other numbers of step and micro-batches show whether a recording depends on them.
            by = (-1 if micro_batches.start else 1) if other else 0
            numbers = range(micro_batches.start + by, micro_batches.stop + by)
            return seeded_draws(self._recipe.seed, step + abs(by), numbers, device, own)

        done = graphs.run(inputs, count, lambda x: self._losses(x, recordable.forward_alone), draws)
        if done is None:
            return None
        (progress.enter if last else progress.move)("backward")
        recordable.add_gradients(done.gradients, last=last)
        return done.means

    def _inputs(self, batch: DeviceBatch, step: int, epoch: int, micro_batches: range) -> Inputs:
        recipe = self._recipe
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
        return Inputs(images, targets, batch.labels, batch.domain)

    def _losses(
        self, inputs: Inputs, forward: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, penalty and accuracy of one forward, as means over it."""
        if inputs.domain is not None:
            set_domains(self._engine.model, inputs.domain)
        logits = forward(inputs.images)
        smoothing = self._recipe.optim.label_smoothing
        loss = functional.cross_entropy(logits, inputs.targets, label_smoothing=smoothing)
        penalty = self._trainable.penalty(inputs.labels).to(loss.dtype)
        accuracy = (logits.detach().argmax(1) == inputs.labels).to(loss.dtype).mean()
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
