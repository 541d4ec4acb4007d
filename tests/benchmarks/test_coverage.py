"""The 95 % interval of a comparison contains the true difference in 95 % of simulations."""

from __future__ import annotations

import pytest
from interval_coverage import INTERVALS, SPREADS, coverage, simulate, true_difference

REPEATS = 2000
# Three standard errors of a share of 95 % over as many simulations.
ERROR = 3 * (0.95 * 0.05 / REPEATS) ** 0.5


@pytest.mark.parametrize("spread", ["seeds alone", "seeds and pictures"])
def test_five_seeds_cover(spread: str) -> None:
    differences = simulate(SPREADS[spread], REPEATS, 5, 300, seed=1)
    truth = true_difference(SPREADS[spread])
    assert differences.mean() == pytest.approx(truth, abs=0.004)
    share, _ = coverage(INTERVALS["t, crossed"], differences, truth)
    assert share == pytest.approx(0.95, abs=ERROR)
    # What leaves one of the two spreads out does not.
    without = {"seeds alone": "t over pictures", "seeds and pictures": "t over seeds"}[spread]
    assert coverage(INTERVALS[without], differences, truth)[0] < 0.95 - ERROR
