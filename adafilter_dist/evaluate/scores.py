"""From what happened to each image to the figures of a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.stored.prepared import Domains


@dataclass(frozen=True)
class Outcomes:
    """The model's prediction for each image: all fields have shape (n,).

    ``labels`` and ``predictions`` are int64, ``top5`` bool (label among the five largest logits),
    ``losses`` float64 (cross entropy without smoothing, nats), ``confidences`` float64 (the
    probability of the prediction, by softmax).
    """

    labels: Tensor
    predictions: Tensor
    top5: Tensor
    losses: Tensor
    confidences: Tensor

    @staticmethod
    def of(logits: Tensor, labels: Tensor) -> Outcomes:
        """Outcomes of a batch: logits (n, C), labels int64 (n,)."""
        wide = logits.detach().double()
        largest = wide.topk(min(5, wide.shape[1]), dim=1).indices
        return Outcomes(
            labels=labels,
            predictions=largest[:, 0],
            top5=(largest == labels[:, None]).any(dim=1),
            losses=functional.cross_entropy(wide, labels, reduction="none"),
            confidences=functional.softmax(wide, dim=1).amax(dim=1),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, positions: Tensor | slice) -> Outcomes:
        """Those of some images: ``positions`` int64 (m,), or bool (n,)."""
        return Outcomes(
            self.labels[positions],
            self.predictions[positions],
            self.top5[positions],
            self.losses[positions],
            self.confidences[positions],
        )

    @property
    def correct(self) -> Tensor:
        """(n,) bool: the largest logit is the label's."""
        return self.predictions == self.labels


@dataclass(frozen=True)
class OfDomain:
    """The ``n`` images of a domain, and the share of them that is right."""

    name: str
    n: int
    top1: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a data set. Accuracies are shares in 0..1, the loss is in nats.

    ``confusion`` is int64 (C, C), row = true class, column = predicted class. ``top5`` is None
    where five guesses cover all classes. ``mean_per_class`` averages the recall of the classes
    that occur. ``domains`` are those that occur, where the data name any.
    """

    n: int
    loss: float
    top1: float
    top5: float | None
    mean_per_class: float
    confusion: Tensor
    domains: list[OfDomain] = field(default_factory=list)

    @staticmethod
    def of(outcomes: Outcomes, num_classes: int, domains: Domains | None = None) -> Evaluation:
        """Sum up outcomes; ValueError for no images or a label outside 0..C-1."""
        n = len(outcomes)
        if n == 0:
            raise ValueError("an evaluation needs at least one image")
        low, high = int(outcomes.labels.min()), int(outcomes.labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels {low}..{high} do not fit {num_classes} classes")
        cells = outcomes.labels * num_classes + outcomes.predictions
        confusion = torch.bincount(cells.cpu(), minlength=num_classes**2)
        confusion = confusion.reshape(num_classes, num_classes)
        right = confusion.diagonal()
        per_class = confusion.sum(dim=1)
        occurring = per_class > 0
        recalls = right[occurring].double() / per_class[occurring]
        return Evaluation(
            n=n,
            loss=float(outcomes.losses.sum()) / n,
            top1=int(right.sum()) / n,
            top5=int(outcomes.top5.sum()) / n if num_classes > 5 else None,
            mean_per_class=float(recalls.mean()),
            confusion=confusion,
            domains=_by_domain(outcomes, domains) if domains else [],
        )

    @property
    def mean_of_domains(self) -> float | None:
        """Mean of the domains' accuracies, each counting the same; None where there are none."""
        if not self.domains:
            return None
        return sum(domain.top1 for domain in self.domains) / len(self.domains)

    def row(self) -> dict[str, float | None]:
        """For metrics.jsonl: loss and accuracies, that of each domain as ``top1/NAME``."""
        figures = {"loss": self.loss, "top1": self.top1, "top5": self.top5}
        if self.domains:
            figures["mean_of_domains"] = self.mean_of_domains
        return figures | {f"top1/{domain.name}": domain.top1 for domain in self.domains}

    def to_dict(self, confusion: bool = False) -> dict[str, Any]:
        """Plain JSON types; the confusion matrix (rows: true classes) only when asked for."""
        figures: dict[str, Any] = {
            "n": self.n,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
        }
        if self.domains:
            figures["mean_of_domains"] = self.mean_of_domains
            figures["domains"] = [domain.to_dict() for domain in self.domains]
        return figures | ({"confusion": self.confusion.tolist()} if confusion else {})


def _by_domain(outcomes: Outcomes, domains: Domains) -> list[OfDomain]:
    numbers, correct = torch.from_numpy(domains.numbers), outcomes.correct.cpu()
    figures = []
    for number, name in enumerate(domains.names):
        right = correct[numbers == number]
        if len(right):
            figures.append(OfDomain(name, len(right), int(right.sum()) / len(right)))
    return figures


@dataclass(frozen=True)
class Difference:
    """Top-1 of one model minus another's on the same images, in shares.

    ``standard_error`` is the paired one, ``low`` to ``high`` the 95 % bootstrap interval over
    images. Neither knows of the spread between seeds.
    """

    value: float
    standard_error: float
    low: float
    high: float

    @staticmethod
    def between(one: Outcomes, other: Outcomes) -> Difference:
        """Paired: only images on which exactly one of the two is right carry information."""
        each = one.correct.double() - other.correct.double()
        error = float(each.std(correction=1)) / math.sqrt(len(each)) if len(each) > 1 else 0.0
        return Difference(float(each.mean()), error, *_bootstrap(each))

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return dict(self.__dict__)


_RESAMPLES = 10_000


def _bootstrap(each: Tensor) -> tuple[float, float]:
    """The middle 95 % of the mean of ``each`` (-1, 0 or 1 an image) over resampled images.

    A resample is known by how often it has each of the three values, so that these counts are
    drawn and not the images. The draws are the same each time.
    """
    n = len(each)
    counts = [int((each == value).sum()) for value in (1, -1, 0)]
    drawn = np.random.default_rng(0).multinomial(n, np.array(counts) / n, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)
