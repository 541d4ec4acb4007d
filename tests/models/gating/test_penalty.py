"""Regularisers: their values by hand, and the direction in which they push."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import constant, override_gates
from adafilter_dist.models.gating.penalty import penalty
from adafilter_dist.recipe.sections.model import Gate
from tests.models.networks import images, pairs


def net(**settings: object) -> AdaFilterNet:
    converted = convert(
        pairs(), size=16, gate=Gate(decision="filter", hidden=16, **settings)
    ).train()
    converted(images(8, 16))
    return converted


def test_l1_is_the_mean_over_layers_of_the_mean_gate() -> None:
    model = net()
    means = [gates.mean() for gates in model.gate.decisions.gates.values()]
    value = penalty(model, "l1", 0.3)
    torch.testing.assert_close(value, 0.3 * (means[0] + means[1]) / 2)
    assert value.ndim == 0


def test_target_compares_the_running_mean_moved_by_this_batch() -> None:
    model = net()
    batch = torch.stack([gates.mean() for gates in model.gate.decisions.gates.values()]).detach()
    moved = 0.9 * 0.5 + 0.1 * batch
    torch.testing.assert_close(penalty(model, "target", 2.0, 0.2), 2 * ((moved - 0.2) ** 2).mean())
    step_statistics.update_statistics(model)
    torch.testing.assert_close(model.gate.running_mean, moved)
    model(images(8, 16, seed=2))
    again = torch.stack([gates.mean() for gates in model.gate.decisions.gates.values()]).detach()
    torch.testing.assert_close(
        penalty(model, "target", 1.0, 0.2), ((0.9 * moved + 0.1 * again - 0.2) ** 2).mean()
    )


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log() + (1 - p) * (1 - p).log())


def test_decide_rewards_gates_that_are_sure_and_differ_between_images() -> None:
    model = net(temperature=2.0)
    expected = []
    for logits in model.gate.decisions.logits.values():
        p = torch.sigmoid(logits / 2)
        expected.append(entropy(p).mean() - entropy(p.mean(0)).mean())
    torch.testing.assert_close(penalty(model, "decide", 1.5), 1.5 * torch.stack(expected).mean())

    def value(logits: Tensor) -> float:
        model.gate.decisions.logits = {0: logits.double()}
        model.gate.decisions.gates = {0: logits.double()}
        return float(penalty(model, "decide", 1.0))

    varied = torch.tensor([[40.0], [-40.0]])
    assert value(varied) == pytest.approx(-0.6931, abs=1e-3)  # the minimum, -log 2
    assert value(torch.full((2, 1), 40.0)) == pytest.approx(0, abs=1e-3)  # sure, but constant
    assert value(torch.zeros(2, 1)) == pytest.approx(0, abs=1e-9)  # undecided


def test_decide_has_a_finite_gradient_where_the_sigmoid_saturates() -> None:
    model = convert(pairs().float(), size=16).train()
    logits = torch.tensor([[200.0, -200.0], [200.0, 200.0]], requires_grad=True)
    model.gate.decisions.logits, model.gate.decisions.gates = {0: logits}, {0: logits}
    penalty(model, "decide", 1.0).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def follow(kind: str, target: float) -> list[float]:
    """Mean gate after each of some steps of gradient descent on the penalty alone."""
    torch.manual_seed(0)
    model = convert(pairs(), size=16, gate=Gate(decision="filter", hidden=16)).train()
    optimizer = torch.optim.SGD(model.gate.parameters(), lr=1.0)
    means = []
    for _ in range(60):
        model(images(16, 16))
        optimizer.zero_grad()
        penalty(model, kind, 1.0, target).backward()
        optimizer.step()
        step_statistics.update_statistics(model)
        means.append(float(model.gate.last_mean.mean()))
    return means


@pytest.mark.parametrize("target", [0.2, 0.8])
def test_descending_reaches_the_target(target: float) -> None:
    means = follow("target", target)
    assert abs(means[0] - target) > 0.15
    assert abs(sum(means[-10:]) / 10 - target) < 0.1


def test_descending_l1_closes_gates() -> None:
    means = follow("l1", 0.0)
    assert means[-1] < means[0] - 0.2


def test_none_is_zero_and_unknown_kinds_are_errors() -> None:
    model = net()
    assert float(penalty(model, "none", 1.0)) == 0
    with pytest.raises(ValueError, match="unknown penalty 'l2'"):
        penalty(model, "l2", 1.0)


def test_forced_gates_carry_no_gradient() -> None:
    model = net()
    with override_gates(model, constant(1.0)):
        model(images(4, 16))
    value = penalty(model, "l1", 1.0)
    assert float(value) == 1 and not value.requires_grad
