"""One pass of a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.evaluate.scores import Evaluation, Outcomes
from adafilter_dist.models.backbone.preprocess import Preprocess

Visit = Callable[[Tensor, Tensor, Callable[[], Tensor]], None]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class EvalBatches(Protocol):
    """This rank's share of a data set: over all ranks each position 0..total-1 exactly once."""

    @property
    def total(self) -> int: ...

    @property
    def domains(self) -> Domains | None:
        """Of the whole data set, by position."""

    def __iter__(self) -> Iterator[MicroBatch]: ...


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    kind = _AUTOCAST.get(precision)
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


def sweep(
    model: nn.Module,
    loader: EvalBatches,
    preprocess: Preprocess,
    visit: Visit,
    *,
    device: torch.device,
    precision: str = "fp32",
    channels_last: bool = True,
) -> None:
    """Call ``visit(positions, labels, forward)`` for each batch of this rank.

    Positions stay on the CPU, labels are on ``device``; ``forward()`` gives the logits (b, C) and
    may be called several times. The model is in evaluation mode without gradients; its mode is
    restored.
    """
    dtype = torch.float64 if precision == "fp64" else torch.float32
    with _evaluating(model):
        for batch in loader:
            images, labels = to_device(batch, preprocess, device, dtype, channels_last)

            def forward(images: Tensor = images) -> Tensor:
                with _autocast(device, precision):
                    logits = model(images)
                assert isinstance(logits, Tensor)
                return logits

            visit(batch.index, labels, forward)


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
        )

    def complete(self) -> Outcomes:
        """The outcomes of all images, in order of position."""
        whole = torch.empty(0, dtype=torch.int64)
        columns = self._rows.complete(
            labels=whole,
            predictions=whole,
            top5=torch.empty(0, dtype=torch.uint8),
            losses=torch.empty(0, dtype=torch.float64),
        )
        return Outcomes(**columns | {"top5": columns["top5"].bool()})


def evaluate(
    model: nn.Module,
    loader: EvalBatches,
    preprocess: Preprocess,
    *,
    device: torch.device,
    num_classes: int,
    precision: str = "fp32",
    channels_last: bool = True,
) -> Evaluation:
    """Loss, accuracies and confusion matrix over the whole data set, the same on every rank.

    Collective: every rank of the process group calls it. RuntimeError when the ranks together did
    not see each image exactly once; ValueError when the model has another number of classes.
    """
    rows = OutcomeRows(loader.total, num_classes, device)
    sweep(
        model,
        loader,
        preprocess,
        lambda positions, labels, forward: rows.add(positions, forward(), labels),
        device=device,
        precision=precision,
        channels_last=channels_last,
    )
    return Evaluation.of(rows.complete(), num_classes, loader.domains)
