"""A linear classifier on fixed features, fitted to the optimum of a convex problem by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Strength of L2 beside the mean cross entropy; strong first, each fit starts from the one before.
GRID = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Features:
    """Inputs of the classifier, float32 (n, D), and labels int64 (n,), in order of position."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class LinearFit:
    """A classifier of standardised features, and the strength of L2 that was chosen for it.

    `weights` (C, D + 1), the bias last, belong to (x - mean) / scale. `validation` holds the
    accuracy for each strength tried.
    """

    weights: Tensor
    mean: Tensor
    scale: Tensor
    strength: float
    validation: dict[float, float]

    @property
    def at_edge(self) -> bool:
        """The best strength is the weakest or strongest tried; a better one may lie outside."""
        return self.strength in (min(self.validation), max(self.validation))

    def logits(self, x: Tensor) -> Tensor:
        """(n, C) of features (n, D)."""
        return _logits((x - self.mean).div(self.scale).to(self.weights.device), self.weights)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) that give the same logits for features as they come."""
        weights = self.weights.to(self.mean.device, torch.float64)
        weight = weights[:, :-1] / self.scale
        bias = weights[:, -1] - weight @ self.mean.double()
        return weight.to(self.mean.dtype), bias.to(self.mean.dtype)


def fit_linear(
    train: Features, val: Features | None, num_classes: int, device: torch.device | None = None
) -> LinearFit:
    """Fit on ``train``, choose the L2 strength on ``val``.

    Without ``val`` (data.val_fraction=0) every tenth training image of each class chooses the
    strength, and the fit returned is again on all of ``train``. Deterministic: starts from zero,
    no random draw. Computes on ``device`` (default CPU).
    """
    mean = train.x.mean(dim=0)
    # A feature that never fires has no scale; it stays at zero instead of blowing up.
    scale = train.x.std(dim=0, correction=0).clamp_min(1e-6)

    def standardised(split: Features) -> Features:
        return Features(((split.x - mean) / scale).to(device), split.y.to(device))

    # The rounding of a fast matrix product misleads the line search.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        weights, strength, validation = _choose(
            standardised(train), standardised(val) if val is not None else None, num_classes
        )
    finally:
        torch.set_float32_matmul_precision(before)
    return LinearFit(weights, mean, scale, strength, validation)


def _choose(
    train: Features, val: Features | None, num_classes: int
) -> tuple[Tensor, float, dict[float, float]]:
    fitted, chooser = (train, val) if val is not None else _held_out(train)
    weights = train.x.new_zeros(num_classes, train.x.shape[1] + 1)
    validation: dict[float, float] = {}
    tried: dict[float, Tensor] = {}
    for strength in GRID:
        weights = _fit(fitted, strength, weights)
        tried[strength] = weights
        validation[strength] = float(
            (_logits(chooser.x, weights).argmax(1) == chooser.y).double().mean()
        )
    # Ties go to the stronger regularisation, which comes first.
    best = max(GRID, key=validation.__getitem__)
    weights = tried[best] if val is not None else _fit(train, best, tried[best])
    return weights, best, validation


def _held_out(train: Features) -> tuple[Features, Features]:
    """Nine tenths to fit, one tenth to choose, class by class in order of position."""
    order = torch.argsort(train.y, stable=True)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[::10]] = True
    return Features(train.x[~chosen], train.y[~chosen]), Features(train.x[chosen], train.y[chosen])


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    return functional.linear(x, weights[:, :-1], weights[:, -1])


def _fit(data: Features, strength: float, start: Tensor) -> Tensor:
    """Weights (C, D + 1), the bias last and not penalised, of the regularised optimum."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_MAX_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(_logits(data.x, weights), data.y)
        objective = loss + 0.5 * strength * weights[:, :-1].square().sum()
        objective.backward()
        return objective

    # Evaluation, which calls this, has switched gradients off.
    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()
