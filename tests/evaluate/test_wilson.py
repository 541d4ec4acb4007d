"""Intervals of accuracies against published ones."""

from __future__ import annotations

import pytest

from adafilter_dist.evaluate.wilson import wilson


def test_intervals_are_those_of_newcombes_table() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, n, low, high in (
        *((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)),
        *((0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)),
    ):
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    with pytest.raises(ValueError):
        wilson(0, 0)
