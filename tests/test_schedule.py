"""The learning rate is a function of the step."""

from __future__ import annotations

import pytest

from adafilter_dist.recipe.schema import Optim
from adafilter_dist.schedule import rate_factor


def factors(optim: Optim, epochs: int = 10, per_epoch: int = 10) -> list[float]:
    total = epochs * per_epoch
    return [rate_factor(optim, step, per_epoch, total) for step in range(total)]


def test_warm_up_rises_and_cosine_falls_to_nearly_zero() -> None:
    found = factors(Optim(schedule="cosine", warmup_epochs=2))
    assert found[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert found[20] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.001


def test_steps_multiply_by_gamma() -> None:
    found = factors(Optim(schedule="step", step_epochs=[3, 6], step_gamma=0.1))
    assert [found[29], found[30], found[59], found[60]] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_constant() -> None:
    assert set(factors(Optim(schedule="constant"))) == {1.0}
