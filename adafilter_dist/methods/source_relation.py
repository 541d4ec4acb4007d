"""p(source class | class): what a pre-trained classifier makes of the classes of other data.

Two ways of You et al. (Co-Tuning for Transfer Learning, NeurIPS 2020): the mean prediction on a
class, and their calibrated regression (Algorithm 1; thuml/CoTuning,
module/relationship_learning.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[[Tensor], Tensor]
Predictions = tuple[Tensor, Tensor]
"""Probabilities of source classes, float64 (n, S), and labels int64 (n,)."""
# L2 beside the mean cross entropy; the strongest first, each fit starts from the one before.
_GRID = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def direct_relation(probabilities: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(num_classes, S): the mean prediction on each class; alike for a class without pictures."""
    sums = probabilities.new_zeros(num_classes, probabilities.shape[1])
    sums.index_add_(0, labels, probabilities)
    counts = labels.bincount(minlength=num_classes)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1 / probabilities.shape[1])


def calibrated_relation(
    train: Predictions, val: Predictions, num_classes: int
) -> tuple[Tensor, str]:
    """(num_classes, S) by Bayes from p(class | source class), and a few words on its fit.

    p(class | source class) is a regression of the classes on the predictions, without a bias, its
    L2 chosen on ``val``, its logits calibrated there by one factor. Bayes takes the marginal of the
    source classes in both splits.
    """
    weight = train[0].new_zeros(num_classes, train[0].shape[1])
    fits: list[tuple[float, Tensor]] = []
    for strength in _GRID:
        weight = _minimised(weight, partial(_regularised, train, strength))
        correct = functional.linear(val[0], weight).argmax(1) == val[1]
        fits.append((float(correct.double().mean()), weight))
    accuracy, weight = max(fits, key=lambda fit: fit[0])  # ties go to the stronger
    factor = _minimised(weight.new_ones(()), lambda f: _entropy(f * weight, val))
    marginal = torch.cat([train[0], val[0]]).mean(0)
    joint = (factor * weight).softmax(0) * marginal
    note = f"; a regression on them is {accuracy:.1%} correct on the validation split"
    return joint / joint.sum(1, keepdim=True), note


def _regularised(predictions: Predictions, strength: float, weight: Tensor) -> Tensor:
    return _entropy(weight, predictions) + 0.5 * strength * weight.square().sum()


def _entropy(weight: Tensor, predictions: Predictions) -> Tensor:
    return functional.cross_entropy(functional.linear(predictions[0], weight), predictions[1])


def _minimised(start: Tensor, objective: Objective) -> Tensor:
    value = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [value], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(value)
        loss.backward()
        return loss

    optimizer.step(closure)
    return value.detach()
