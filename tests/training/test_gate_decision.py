"""When the gate decides on pictures: at its step, and later if that step was passed without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from adafilter_dist.models.gating.picture_decision import PictureDecision
from adafilter_dist.recipe.sections.model import Gate
from adafilter_dist.training.gate_decision import decision_is_due, decision_step


def trainable(**settings: object) -> Any:
    gates = SimpleNamespace(settings=Gate(**settings), picture=PictureDecision(3, 1))  # type: ignore[arg-type]
    return SimpleNamespace(gates=gates)


def test_it_decides_between_the_first_and_the_last_step() -> None:
    assert decision_step(trainable(warmup=0.15), 120) == 18
    assert decision_step(trainable(warmup=0.01), 10) == 1
    assert decision_step(trainable(warmup=0.99), 10) == 9
    assert decision_step(trainable(), 1) is None


def test_a_run_that_passed_its_step_undecided_decides_at_once() -> None:
    model = trainable()
    assert [decision_is_due(model, step, 5) for step in (4, 5, 6)] == [False, True, True]
    weights = {"weight": torch.zeros(2, 3), "bias": torch.tensor([1.0, 0.0])}
    model.gates.picture.decide(weights, 4.0)
    # At its step again: a resumed run that was saved there decides the same.
    assert [decision_is_due(model, step, 5) for step in (4, 5, 6)] == [False, True, False]
    assert not decision_is_due(SimpleNamespace(gates=None), 5, None)
