"""SPD against its rule, written out again in NumPy for a few steps."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from adafilter_dist.engine.optimizer import build_optimizer
from adafilter_dist.methods.spd import ProjectionDecay
from adafilter_dist.methods.start_weights import StartWeights
from adafilter_dist.recipe.sections.training import Optim
from tests.methods.test_methods import build

Array = npt.NDArray[np.float64]
STEPS, RATE = 6, 0.1


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (5,), (2, 7)]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def gradients() -> list[list[Array]]:
    rng = np.random.default_rng(1)
    return [[rng.normal(size=tuple(p.shape)) for p in parameters()] for _ in range(STEPS)]


def sgd(gradient: Array, state: dict[str, Array], step: int) -> Array:
    state["m"] = gradient if step == 0 else 0.9 * state["m"] + gradient
    return RATE * state["m"]


def adam(gradient: Array, state: dict[str, Array], step: int) -> Array:
    state["m"] = 0.9 * state.get("m", np.zeros_like(gradient)) + 0.1 * gradient
    state["v"] = 0.999 * state.get("v", np.zeros_like(gradient)) + 0.001 * gradient**2
    mean, square = state["m"] / (1 - 0.9 ** (step + 1)), state["v"] / (1 - 0.999 ** (step + 1))
    return RATE * mean / (np.sqrt(square) + 1e-8)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_the_rules(name: Literal["sgd", "adamw"], strength: float) -> None:
    tensors = parameters()
    rule = ProjectionDecay(tensors, StartWeights(tensors), strength)
    groups = [{"params": tensors[:2]}, {"params": tensors[2:]}]
    optim = Optim(name=name, lr=RATE, momentum=0.9, weight_decay=0.0)
    optimizer = build_optimizer(groups, optim, rule)
    starts = [p.detach().numpy().copy() for p in tensors]
    weights = [start.copy() for start in starts]
    states: list[dict[str, Array]] = [{} for _ in tensors]
    drawn = 0
    for step, given in enumerate(gradients()):
        for parameter, gradient in zip(tensors, given, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        for number, gradient in enumerate(given):
            w, w0 = weights[number], starts[number]
            moved = w - (sgd if name == "sgd" else adam)(gradient, states[number], step)
            if np.sum(gradient * (w - w0)) > 0:
                after, before = np.linalg.norm(moved - w0), np.linalg.norm(w - w0)
                share = min(max((after - before) / after, 0), 1)
                moved = moved - strength * share * (moved - w0)
                drawn += share > 0
                if strength == 1:
                    assert np.linalg.norm(moved - w0) <= before * (1 + 1e-12)
            weights[number] = moved
        for parameter, wanted in zip(tensors, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-12, atol=1e-13)
    assert drawn >= 3, "the gradients are such that it matters"


def test_tensors_without_gradient_and_at_their_start_stay() -> None:
    tensors = parameters()
    before = [p.detach().clone() for p in tensors]
    rule = ProjectionDecay(tensors, StartWeights(tensors), 1.0)
    optimizer = build_optimizer([{"params": tensors}], Optim(weight_decay=0.0), rule)
    tensors[1].grad = torch.zeros_like(tensors[1])
    for _ in range(2):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(tensors, before, strict=True))


def test_every_trained_tensor_has_its_start_and_the_export_none() -> None:
    trainable, _ = build({"name": "spd", "layers": "layer4"}, ungated="freeze")
    trained = {name for name, p in trainable.model.named_parameters() if p.requires_grad}
    assert "fc.weight" in trained and not any(name.startswith("layer1") for name in trained)
    state = trainable.model.state_dict()
    assert sum(name.startswith("start_weights.") for name in state) == len(trained)
