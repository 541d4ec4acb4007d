"""Hard gates and the gradients that they hand back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating.estimators import binarise

KINDS = ["straight_through", "identity", "gumbel", "semhash"]


def logits(n: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, 3, generator=generator, dtype=torch.float64) * 2).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_threshold(kind: str) -> None:
    values = logits()
    gates = binarise(values, kind, 0.7, training=False)
    assert torch.equal(gates, (values > 0).double()) and not gates.requires_grad


@pytest.mark.parametrize("kind", ["straight_through", "identity", "gumbel"])
def test_training_gates_are_exactly_zero_or_one(kind: str) -> None:
    gates = binarise(logits() * 30, kind, 0.7, training=True)
    assert set(gates.unique().tolist()) == {0.0, 1.0}


def test_straight_through_has_the_sigmoids_gradient() -> None:
    values = logits()
    gates = binarise(values, "straight_through", 0.5, training=True)
    assert torch.equal(gates, (values > 0).double())
    gates.sum().backward()
    p = torch.sigmoid(values.detach() / 0.5)
    torch.testing.assert_close(values.grad, p * (1 - p) / 0.5)


def test_identity_hands_the_gradient_on() -> None:
    values = logits()
    gates = binarise(values, "identity", 2.0, training=True)
    assert torch.equal(gates, (values > 0).double())
    gates.sum().backward()
    torch.testing.assert_close(values.grad, torch.full_like(values, 0.5))


def test_gumbel_is_one_with_the_sigmoids_probability_at_any_temperature() -> None:
    torch.manual_seed(0)
    for temperature in (0.5, 2.0):
        for logit in (-1.5, 0.0, 1.0):
            values = torch.full((40_000, 1), logit, dtype=torch.float64, requires_grad=True)
            gates = binarise(values, "gumbel", temperature, training=True)
            share = 1 / (1 + torch.tensor(-logit).exp())
            assert float(gates.detach().mean()) == pytest.approx(float(share), abs=0.01)
            gates.sum().backward()
            assert values.grad is not None and bool((values.grad > 0).all())


def test_semantic_hashing_is_soft_for_half_of_the_images_and_saturates() -> None:
    torch.manual_seed(0)
    values = logits()
    gates = binarise(values, "semhash", 1.0, training=True)
    assert bool((gates >= 0).all()) and bool((gates <= 1).all())
    fractional = ((gates > 0) & (gates < 1)).any(1)
    assert 0.35 < float(fractional.double().mean()) < 0.52
    gates.sum().backward()
    assert values.grad is not None
    assert bool((values.grad >= 0).all()) and float((values.grad > 0).double().mean()) > 0.5
    far = torch.full((100, 1), 20.0, dtype=torch.float64, requires_grad=True)
    binarise(far, "semhash", 1.0, training=True).sum().backward()
    assert far.grad is not None and not far.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(kind: str, dtype: torch.dtype) -> None:
    values = torch.tensor([[-1e4, -40.0, 0.0, 40.0, 1e4]], dtype=dtype, requires_grad=True)
    gates = binarise(values, kind, 1.0, training=True)
    gates.sum().backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all()) and bool(gates.isfinite().all())
    assert gates[0, 0].item() == 0 and gates[0, -1].item() == 1


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown estimator 'x'"):
        binarise(logits(), "x", 1.0, training=True)
