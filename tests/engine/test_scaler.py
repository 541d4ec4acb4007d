"""The loss scale beside torch's own: the same numbers after any steps, the same state."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from adafilter_dist.engine import scaler
from adafilter_dist.engine.scaler import LossScaler

INTERVAL = 3


class Torchs:
    """`torch.amp.GradScaler` with a parameter whose gradients overflow or not, as they are told."""

    def __init__(self, **settings: int) -> None:
        self.scaler = torch.amp.GradScaler("cpu", **settings)
        self._weight = nn.Parameter(torch.zeros(1))
        self._optimizer = torch.optim.SGD([self._weight], lr=0.1)

    def update(self, *, overflow: bool) -> None:
        loss = self.scaler.scale(self._weight.sum())
        self._optimizer.zero_grad()
        loss.backward()
        if overflow:
            self._weight.grad.fill_(torch.inf)
        self.scaler.step(self._optimizer)
        self.scaler.update()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales grow after a few steps already."""
    monkeypatch.setattr(scaler, "_INTERVAL", INTERVAL)


def overflows(number: int, seed: int = 0) -> list[bool]:
    draw = random.Random(seed)
    return [draw.random() < 0.3 for _ in range(number)]


def test_it_begins_as_torchs() -> None:
    assert LossScaler().state_dict() == Torchs().scaler.state_dict()


@pytest.mark.usefixtures("often")
def test_any_steps_leave_the_same_scale() -> None:
    ours, torchs = LossScaler(), Torchs(growth_interval=INTERVAL)
    scales = set()
    for overflow in overflows(200):
        ours.update(overflow=overflow)
        torchs.update(overflow=overflow)
        assert ours.state_dict() == torchs.scaler.state_dict()
        scales.add(ours.scale)
    assert min(scales) < 2.0**16 < max(scales)


def test_it_grows_after_two_thousand_steps_without_an_overflow() -> None:
    ours = LossScaler()
    ours.update(overflow=True)
    for _ in range(1999):
        ours.update(overflow=False)
    assert ours.scale == 2.0**15
    ours.update(overflow=False)
    assert ours.scale == 2.0**16


@pytest.mark.usefixtures("often")
def test_it_grows_no_further_than_fp32_reaches() -> None:
    ours, torchs = LossScaler(), Torchs(growth_interval=INTERVAL)
    for _ in range(115 * INTERVAL):
        ours.update(overflow=False)
        torchs.update(overflow=False)
        assert ours.state_dict() == torchs.scaler.state_dict()
    assert ours.scale == 2.0**127


@pytest.mark.usefixtures("often")
def test_each_goes_on_from_a_state_of_the_other() -> None:
    ours, torchs = LossScaler(), Torchs(growth_interval=INTERVAL)
    for number, overflow in enumerate(overflows(60, seed=1)):
        if number % 10 == 5:
            states = torchs.scaler.state_dict(), ours.state_dict()
            ours, torchs = LossScaler(), Torchs(growth_interval=INTERVAL)
            ours.load_state_dict(states[0])
            torchs.scaler.load_state_dict(states[1])
            assert ours.state_dict() == states[0] and torchs.scaler.state_dict() == states[1]
        ours.update(overflow=overflow)
        torchs.update(overflow=overflow)
        assert ours.state_dict() == torchs.scaler.state_dict()
