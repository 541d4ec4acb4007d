"""The gate's decision on pictures, made once during training: when, and over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.evaluate.forward_pass import sweep
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.methods import TrainableModel
from adafilter_dist.models.gating.decide import (
    DecisionSummary,
    find_decision,
    measure_choices,
)
from adafilter_dist.training.session import Session


def decision_step(trainable: TrainableModel, total_steps: int) -> int | None:
    """The number of steps after which the gate decides on pictures; None if it never does."""
    gate = trainable.gates
    if gate is None or gate.picture is None or total_steps < 2:
        return None
    return min(max(1, round(gate.settings.warmup * total_steps)), total_steps - 1)


def decision_is_due(trainable: TrainableModel, step: int, decision_step: int | None) -> bool:
    """Whether the gate decides before step `step`.

    At its step, also when resumed just there: it comes out the same. And later, if the run was
    shortened behind that step, so that the gate never decided: it would stay plain fine-tuning.
    """
    gate = trainable.gates
    if decision_step is None or gate is None or gate.picture is None:
        return False
    return step == decision_step or (step > decision_step and not gate.picture.is_made)


def decide_on_pictures(session: Session, on_batch: Callable[[], None]) -> DecisionSummary:
    """Measure training pictures as evaluation sees them, decide, and give every rank the decision.

    Collective. A function of the weights and the data alone: a run that is resumed at this step
    decides the same again.
    """
    recipe, world = session.recipe, session.world
    gate = session.trainable.gates
    assert gate is not None and gate.picture is not None
    evaluator = replace(
        session.evaluator, prepared=PreparedSubset.of(session.prepared, gate.settings.pictures)
    )
    loader = evaluator.loader("train")
    rows = Rows(loader.total, world.device)

    # Losses and features of this rank's pictures, then of all.
    with session.engine.whole_model() as model:

        def visit(positions: Tensor, labels: Tensor, forward: Callable[[], Tensor]) -> None:
            on_batch()
            features, losses = measure_choices(model, forward, labels)
            rows.add(positions, features=features, losses=losses)

        sweep(model, loader, evaluator.settings, visit, "measuring both kinds of filters")
    dtype = gate.picture.weight.dtype
    columns = rows.complete(
        features=torch.empty(0, len(gate.picture.feature_mean), dtype=dtype),
        losses=torch.empty(0, len(gate.picture.choices), dtype=torch.float64),
    )

    # Every rank fits, rank 0's answer is taken: the others may run with other libraries.
    fitted, summary = find_decision(gate, columns["features"], columns["losses"], recipe.seed)
    for name, tensor in fitted.items():
        own = tensor.to(session.engine.dtype).to(world.device).flatten()
        whole = session.engine.reduce(own if world.is_rank0 else torch.zeros_like(own))
        fitted[name] = whole.reshape(tensor.shape)
    gate.picture.decide(fitted, gate.settings.margin)
    return summary
