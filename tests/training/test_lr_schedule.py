"""The learning rate is a function of the step."""

from __future__ import annotations

import pytest

from adafilter_dist.recipe.sections.training import Optim
from adafilter_dist.training.lr_schedule import lr_factor


def factors(optim: Optim, epochs: int = 10, per_epoch: int = 10) -> list[float]:
    total = epochs * per_epoch
    return [lr_factor(optim, step, per_epoch, total) for step in range(total)]


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


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_length_of_its_own_and_the_last_rate_held(schedule: str) -> None:
    words = {"schedule": schedule, "step_epochs": [3, 8], "warmup_epochs": 1}
    plain = factors(Optim.model_validate(words), epochs=6)
    held = factors(Optim.model_validate(words | {"schedule_epochs": 6}), epochs=10)
    assert held[:60] == plain
    assert set(held[60:]) == {plain[-1]}  # the drop after epoch 8 lies past the schedule's end


def test_a_schedule_longer_than_the_training_is_cut_off() -> None:
    long = factors(Optim(schedule="cosine"), epochs=10)
    assert factors(Optim(schedule="cosine", schedule_epochs=10), epochs=4) == long[:40]


def test_a_length_that_the_warm_up_fills_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing of schedule_epochs=2"):
        Optim(schedule_epochs=2, warmup_epochs=2)
