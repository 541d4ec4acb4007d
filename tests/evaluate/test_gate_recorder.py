"""Which networks have gates of bits, which can be recorded."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from adafilter_dist.evaluate.gate_recorder import has_bits
from adafilter_dist.models.gating.convert import convert
from adafilter_dist.recipe.sections.model import Gate


def network() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        ({}, True),
        ({"mode": "frozen"}, True),
        ({"mode": "partition"}, True),
        ({"mode": "oracle", "oracle": {"near": 0, "far": 1}}, True),
        ({"mode": "oracle", "oracle": {"near": 0, "far": 0.5}}, False),
        ({"mode": "oracle", "oracle": {"near": [0], "far": 1}}, True),
        ({"mode": "oracle", "oracle": {"near": [0.5], "far": 1}}, False),
        ({"mode": "bernoulli"}, False),
        ({"mode": "constant"}, False),
    ],
)
def test_gates_are_bits_unless_they_blend(words: dict[str, Any], bits: bool) -> None:
    gate = Gate(recipe="paper", hidden=2, **words)
    assert has_bits(convert(network(), size=16, gate=gate, head="4")) == bits
    assert not has_bits(network())
