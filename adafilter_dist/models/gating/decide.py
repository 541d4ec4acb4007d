"""Measure what each choice of filters costs the training pictures, and decide by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.decision_contrast import cross_validated_contrast
from adafilter_dist.models.gating.gate import RecurrentGate, find_gate
from adafilter_dist.models.gating.gate_overrides import override_gates
from adafilter_dist.models.gating.picture_decision import (
    PictureDecision,
    fit_decision,
    is_same_for_all,
    random_decision,
    same_for_all,
)


@dataclass(frozen=True)
class DecisionSummary:
    """What was decided: pictures measured, and means over them.

    `tuned` is the share of groups that a picture takes fine-tuned; the losses are in nats, with
    all filters pre-trained, with all fine-tuned, and as decided. `contrast` is the one compared
    with `method.gate.contrast`; None where nothing was to be compared.
    """

    pictures: int
    tuned: float
    frozen_loss: float
    tuned_loss: float
    decided_loss: float
    contrast: float | None = None


def require_picture_decision(model: nn.Module) -> tuple[RecurrentGate, PictureDecision]:
    """The gate of `model` and its decision on pictures; UserError where there is none."""
    gate = find_gate(model)
    if gate.picture is None:
        raise UserError("decide: this network's gate has no decision=picture to make")
    return gate, gate.picture


def measure_choices(
    model: nn.Module, forward: Callable[[], Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and losses (N, J) of a batch's pictures under each of the J choices.

    `forward()` runs `model` in evaluation mode and gives logits (N, classes).
    """
    gate, picture = require_picture_decision(model)
    losses: list[Tensor] = []
    for choice in picture.choices:

        def chosen(index: int, gates: Tensor, choice: Tensor = choice) -> Tensor:
            bit = choice[gate.group_of_layer[index]]
            return bit.to(gates.dtype).expand_as(gates)

        picture.measuring = True
        try:
            with override_gates(model, chosen):
                logits = forward()
        finally:
            picture.measuring = False
        losses.append(F.cross_entropy(logits.double(), labels, reduction="none"))
    features = gate.decisions.features
    assert features is not None
    return features, torch.stack(losses, 1)


def find_decision(
    gate: RecurrentGate, features: Tensor, losses: Tensor, seed: int
) -> tuple[dict[str, Tensor], DecisionSummary]:
    """The decision from all pictures' features (N, D) and losses (N, J): buffers and summary.

    Fine-tuned filters for all pictures where it would set them too little apart
    (`method.gate.contrast`). `seed` draws the decision of a gate with mode=frozen, which is not
    fitted.
    """
    settings, picture = gate.settings, gate.picture
    assert picture is not None
    choices = picture.choices.double().cpu()
    features, losses = features.double().cpu(), losses.double().cpu()
    apart: float | None = None
    if settings.mode == "frozen":
        generator = torch.Generator().manual_seed(seed)
        fitted = random_decision(features, choices, generator)
    else:
        how = {"lean": settings.lean, "ridge": settings.ridge}
        fitted = fit_decision(features, losses, choices, **how)
        # Pictures that are much alike are not divided, and fine-tuning is what was asked for.
        tuned = len(choices) - 1
        if settings.contrast > 0 and not is_same_for_all(fitted, tuned):
            apart = cross_validated_contrast(features, losses, choices, **how)
            if apart < settings.contrast:
                fitted = same_for_all(fitted, tuned)
    # A copy in float64 says what each picture gets.
    copy = PictureDecision(features.shape[1], settings.groups, dtype=torch.float64)
    copy.decide(fitted, settings.margin)
    chosen = copy.choice(features)
    return fitted, DecisionSummary(
        pictures=len(features),
        tuned=float(choices[chosen].mean()),
        frozen_loss=float(losses[:, 0].mean()),
        tuned_loss=float(losses[:, -1].mean()),
        decided_loss=float(losses.gather(1, chosen[:, None]).mean()),
        contrast=apart,
    )


def decide(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0
) -> DecisionSummary:
    """Make the decision on pictures of a network in your own training loop.

    Call it once, after some 15 % of the steps, when the fine-tuned filters have begun to learn and
    do not yet know the pictures by heart. `batches` gives (images, labels) of the training set on
    the model's device. Until then all gates are 1. The mode of `model` is restored. Raises
    UserError for a network without such a decision.
    """
    gate, picture = require_picture_decision(model)
    training = model.training
    model.eval()
    columns: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for images, labels in batches:
                columns.append(
                    measure_choices(model, lambda images=images: model(images), labels)  # type: ignore[misc]
                )
    finally:
        model.train(training)
    if not columns:
        raise UserError("decide: no pictures were given")
    features, losses = (torch.cat(parts) for parts in zip(*columns, strict=True))
    fitted, summary = find_decision(gate, features, losses, seed)
    picture.decide(fitted, gate.settings.margin)
    return summary
