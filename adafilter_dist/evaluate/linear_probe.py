"""What the frozen features are worth: a linear classifier on them, fitted to the optimum.

The features are the input of the backbone's classifier, computed once per image in evaluation
mode, so a fit costs seconds and needs no learning rate: L-BFGS on a convex problem
(`models/backbone/linear_fit.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.evaluate import EvalBatches, Evaluation, ForwardSettings, Outcomes, sweep
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.models.backbone.linear_fit import Features, fit_linear


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
        sweep(model, loader, settings, visit, "computing features")
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
    """Fit on ``train`` and choose the L2 strength on ``val`` (`fit_linear`), report on ``test``."""
    fit = fit_linear(train, val, num_classes, device)
    # The rounding of a fast matrix product would be another one than in the fit.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        logits = fit.logits(test.x)
    finally:
        torch.set_float32_matmul_precision(before)
    return Probe(
        test=Evaluation.of(Outcomes.of(logits.cpu(), test.y), num_classes),
        strength=fit.strength,
        validation=fit.validation,
        features=train.x.shape[1],
        train_images=len(train.y),
    )
