"""One pass of a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adafilter_dist.activations.cache import ActivationCache
from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate.gate_recorder import GateRecorder
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.evaluate.scores import Evaluation, Outcomes
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.gating.control_gates import set_domains
from adafilter_dist.models.ops.dtypes import autocast, weights_dtype
from adafilter_dist.system.progress import Counting, no_counting

Visit = Callable[[Tensor, Tensor, Callable[[], Tensor]], None]
Skip = Callable[[], AbstractContextManager[None]]


class EvalBatches(Protocol):
    """This rank's share of a data set: over all ranks each position 0..total-1 exactly once."""

    @property
    def total(self) -> int: ...

    @property
    def domains(self) -> Domains | None:
        """Of the whole data set, by position."""

    def __iter__(self) -> Iterator[MicroBatch]: ...


@dataclass(frozen=True)
class ForwardSettings:
    """How a model is run over pictures: normalisation, device, ``train.precision``, layout.

    ``cache`` is that of ``train.cache``, None where every picture is computed from its pixels.
    ``counting`` shows on this rank how far a pass is.
    """

    preprocess: Preprocess
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = True
    cache: ActivationCache | None = None
    counting: Counting = no_counting


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def sweep(
    model: nn.Module,
    loader: EvalBatches,
    settings: ForwardSettings,
    visit: Visit,
    what: str = "evaluating",
) -> None:
    """Call ``visit(positions, labels, forward)`` for each batch of this rank.

    Positions stay on the CPU, labels are on the device; ``forward()`` gives the logits (b, C) and
    may be called several times. The model is in evaluation mode without gradients; its mode is
    restored. The progress is shown as ``what``.
    """
    device, total, seen = settings.device, loader.total, 0
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    with _evaluating(model), settings.counting(what, total) as done:
        for batch, inputs, skip in _inputs(model, loader, settings):
            labels = batch.labels.to(device, non_blocking=True)
            if batch.domain is not None:
                names = loader.domains.names if loader.domains is not None else None
                set_domains(model, batch.domain.to(device), names)

            def forward(inputs: Tensor = inputs, skip: Skip = skip) -> Tensor:
                with autocast(device, settings.precision), skip():
                    logits = model(inputs)
                assert isinstance(logits, Tensor)
                return logits

            visit(batch.index, labels, forward)
            seen += ranks * len(batch.index)  # other ranks are about as far
            done(min(seen, total))


def _inputs(
    model: nn.Module, loader: EvalBatches, settings: ForwardSettings
) -> Iterator[tuple[MicroBatch, Tensor, Skip]]:
    """Batches and what the model takes for them: pictures, or activations inside the last."""
    cached = None
    if settings.cache is not None:
        cached = settings.cache.evaluation(model, loader, settings.precision)
    if cached is not None:
        yield from cached
        return
    dtype = weights_dtype(settings.precision)
    for batch in loader:
        images, _ = to_device(
            batch, settings.preprocess, settings.device, dtype, settings.channels_last
        )
        yield batch, images, nullcontext


class OutcomeRows:
    """Outcomes collected batch by batch, completed over all ranks."""

    def __init__(self, n: int, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._rows = Rows(n, device)

    def add(self, positions: Tensor, logits: Tensor, labels: Tensor) -> None:
        """A batch; ValueError when the model has another number of classes."""
        if logits.shape[1] != self._num_classes:
            raise ValueError(
                f"the model tells {logits.shape[1]} classes apart, the data have "
                f"{self._num_classes}"
            )
        outcomes = Outcomes.of(logits, labels)
        self._rows.add(
            positions,
            labels=outcomes.labels,
            predictions=outcomes.predictions,
            top5=outcomes.top5,
            losses=outcomes.losses,
            confidences=outcomes.confidences,
        )

    def complete(self) -> Outcomes:
        """The outcomes of all images, in order of position."""
        whole = torch.empty(0, dtype=torch.int64)
        columns = self._rows.complete(
            labels=whole,
            predictions=whole,
            top5=torch.empty(0, dtype=torch.uint8),
            losses=torch.empty(0, dtype=torch.float64),
            confidences=torch.empty(0, dtype=torch.float64),
        )
        return Outcomes(**columns | {"top5": columns["top5"].bool()})


def outcomes_of(
    model: nn.Module,
    loader: EvalBatches,
    settings: ForwardSettings,
    num_classes: int,
    recorder: GateRecorder | None = None,
) -> Outcomes:
    """The prediction for each image of the data set, the same on every rank.

    ``recorder`` keeps the gates of the pictures that it is made for.

    Collective: every rank of the process group calls it. RuntimeError when the ranks together did
    not see each image exactly once; ValueError when the model has another number of classes.
    """
    rows = OutcomeRows(loader.total, num_classes, settings.device)

    def visit(positions: Tensor, labels: Tensor, forward: Callable[[], Tensor]) -> None:
        with recorder.batch(positions) if recorder is not None else nullcontext():
            logits = forward()
        rows.add(positions, logits, labels)

    sweep(model, loader, settings, visit)
    return rows.complete()


def evaluate(
    model: nn.Module,
    loader: EvalBatches,
    settings: ForwardSettings,
    num_classes: int,
    recorder: GateRecorder | None = None,
) -> Evaluation:
    """Loss, accuracies and confusion matrix over the whole data set; as ``outcomes_of``."""
    outcomes = outcomes_of(model, loader, settings, num_classes, recorder)
    return Evaluation.of(outcomes, num_classes, loader.domains)
