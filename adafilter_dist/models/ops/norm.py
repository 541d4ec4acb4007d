"""A branch's BatchNorm, as the passes of a gated layer see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """Its affine pair, (C,) each or None, and the statistics it takes.

    `batch`: they are this batch's own, so that the gradient runs through them too. ``total`` (C,):
    they are of so many images' worth, each weighing as its gate says; None: of all alike.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float
    batch: bool
    total: Tensor | None = None

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, one and zero where it has none."""
        weight = torch.ones_like(self.mean) if self.weight is None else self.weight
        return weight, torch.zeros_like(self.mean) if self.bias is None else self.bias


@dataclass(frozen=True)
class Affine:
    """What backward needs of it: weight, bias and 1 / standard deviation, (C,) each."""

    weight: Tensor
    bias: Tensor
    rstd: Tensor
    batch: bool
    total: Tensor | None = None


@dataclass(frozen=True)
class Choosers:
    """Whose statistics a branch takes: those of the images that chose the filter.

    An image weighs its gate in the tuned branch, 1 - its gate in the other; gates (N, C), fractions
    too. The running statistics ``mean`` and ``var`` (C,) stand in for who is missing: they weigh
    ``prior`` images times the share that chose otherwise.
    """

    gates: Tensor
    tuned: bool
    mean: Tensor
    var: Tensor
    prior: float


@dataclass(frozen=True)
class ChosenMoments:
    """Of one batch: ``taken`` (3, C), mean, variance and weight, in images, of all that count.

    ``sums`` (3, C), for the running statistics: mean and unbiased variance of the choosers alone
    times their share of the batch, and that share.
    """

    taken: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Gradients:
    """Of gates (N, C) and both affine pairs (C,), and the coefficients of `spread`.

    ``first`` and ``second`` are p, q and r (N, C) of dy = p dz + q (y - mean) + r.
    """

    gates: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    first: tuple[Tensor, Tensor, Tensor]
    second: tuple[Tensor, Tensor, Tensor]
