"""A branch's BatchNorm, as the passes of a gated layer see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """Its affine pair, (C,) each or None, and the statistics it takes.

    `batch`: they are this batch's own, so that the gradient runs through them too.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float
    batch: bool

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


@dataclass(frozen=True)
class Gradients:
    """Of gates (N, C) and both affine pairs (C,), and the coefficients of `spread`.

    ``first`` and ``second`` are p (N, C), q and r (C,) of dy = p dz + q (y - mean) + r.
    """

    gates: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    first: tuple[Tensor, Tensor, Tensor]
    second: tuple[Tensor, Tensor, Tensor]
