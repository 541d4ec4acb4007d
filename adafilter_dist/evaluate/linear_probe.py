"""What the frozen features are worth: a linear classifier on them, fitted to the optimum.

The features are the input of the backbone's classifier, computed once per image in evaluation
mode, so a fit costs seconds and needs no learning rate: L-BFGS on a convex problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.evaluate import EvalBatches, Evaluation, ForwardSettings, Outcomes, sweep
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.methods.base import Features

# Strength of L2 beside the mean cross entropy; strong first, each fit starts from the one before.
GRID = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """The linear probe: its figures on the test images, and the strength chosen on ``val``.

    ``validation`` holds the accuracy for each strength tried.
    """

    test: Evaluation
    strength: float
    validation: dict[float, float]
    features: int
    train_images: int

    @property
    def at_edge(self) -> bool:
        """The best strength is the weakest or strongest tried; a better one may lie outside."""
        return self.strength in (min(self.validation), max(self.validation))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "test": self.test.to_dict(),
            "strength": self.strength,
            "at_edge": self.at_edge,
            "validation": {f"{key:g}": value for key, value in self.validation.items()},
            "features": self.features,
            "train_images": self.train_images,
        }


def extract_features(
    model: nn.Module, head: str, loader: EvalBatches, settings: ForwardSettings
) -> Features:
    """Inputs of the module named ``head`` for every image, on the CPU, on every rank.

    Collective. RuntimeError when the ranks together did not see each image exactly once.
    """
    module = model.get_submodule(head)
    assert isinstance(module, nn.Linear)
    rows = Rows(loader.total, settings.device)
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))

    def visit(positions: Tensor, labels: Tensor, forward: Callable[[], Tensor]) -> None:
        caught.clear()
        forward()
        (features,) = caught
        rows.add(positions, x=features.float(), y=labels)

    try:
        sweep(model, loader, settings, visit)
    finally:
        handle.remove()
    columns = rows.complete(
        x=torch.empty(0, module.in_features), y=torch.empty(0, dtype=torch.int64)
    )
    return Features(**columns)


def fit_probe(
    train: Features,
    val: Features | None,
    test: Features,
    num_classes: int,
    device: torch.device | None = None,
) -> Probe:
    """Fit on ``train``, choose the L2 strength on ``val``, report on ``test``.

    Without ``val`` (data.val_fraction=0) every tenth training image of each class chooses the
    strength, and the fit reported is again on all of ``train``. Deterministic: starts from zero,
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
        return _choose(
            standardised(train),
            standardised(val) if val is not None else None,
            standardised(test),
            num_classes,
        )
    finally:
        torch.set_float32_matmul_precision(before)


def _choose(train: Features, val: Features | None, test: Features, num_classes: int) -> Probe:
    fitted, chooser = (train, val) if val is not None else _held_out(train)
    weight = train.x.new_zeros(num_classes, train.x.shape[1] + 1)
    validation: dict[float, float] = {}
    tried: dict[float, Tensor] = {}
    for strength in GRID:
        weight = _fit(fitted, strength, weight)
        tried[strength] = weight
        validation[strength] = float(
            (_logits(chooser.x, weight).argmax(1) == chooser.y).double().mean()
        )
    # Ties go to the stronger regularisation, which comes first.
    best = max(GRID, key=validation.__getitem__)
    weight = tried[best] if val is not None else _fit(train, best, tried[best])
    outcomes = Outcomes.of(_logits(test.x, weight).cpu(), test.y.cpu())
    return Probe(
        test=Evaluation.of(outcomes, num_classes),
        strength=best,
        validation=validation,
        features=train.x.shape[1],
        train_images=len(train.y),
    )


def _held_out(train: Features) -> tuple[Features, Features]:
    """Nine tenths to fit, one tenth to choose, class by class in order of position."""
    order = torch.argsort(train.y, stable=True)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[::10]] = True
    return Features(train.x[~chosen], train.y[~chosen]), Features(train.x[chosen], train.y[chosen])


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x, weight[:, :-1], weight[:, -1])


def _fit(data: Features, strength: float, start: Tensor) -> Tensor:
    """Weights (C, D + 1), the bias last and not penalised, of the regularised optimum."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=_MAX_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(_logits(data.x, weight), data.y)
        objective = loss + 0.5 * strength * weight[:, :-1].square().sum()
        objective.backward()
        return objective

    optimizer.step(closure)
    return weight.detach()
