"""The warning that gates no longer decide."""

from __future__ import annotations

import torch

from adafilter_dist.training.gate_watch import GateWatch


class Gates:
    """What the watch reads of a gate; ``picture`` is its decision on pictures, if it has one."""

    picture: object = None

    def __init__(self, mean: list[float], variance: list[float]) -> None:
        self.last_mean = torch.tensor(mean)
        self.last_variance = torch.tensor(variance)


def warnings(*steps: Gates) -> list[str]:
    gate = steps[0]
    watch = GateWatch(gate)  # type: ignore[arg-type]
    for step in steps:
        gate.last_mean, gate.last_variance = step.last_mean, step.last_variance
        watch.step()
    return watch.end_epoch()


def test_constant_gates_are_named_for_what_they_are() -> None:
    (line,) = warnings(Gates([1.0, 1.0, 1.0], [0.0, 0.0, 0.2]))
    assert "in 2 of 3 layers" in line and "plain fine-tuning" in line
    (line,) = warnings(Gates([0.0, 0.0], [0.0, 0.0]))
    assert "feature extraction" in line
    (line,) = warnings(Gates([0.5, 0.4], [0.0, 0.0]))
    assert "fixed partition" in line


def test_the_advice_fits_how_the_gate_is_trained() -> None:
    gate = Gates([1.0], [0.0])
    (line,) = warnings(gate)
    assert "raise optim.lr_gate" in line and "lean" not in line
    gate.picture = object()
    (line,) = warnings(gate)
    assert "method.gate.lean" in line and "lr_gate" not in line


def test_deciding_gates_are_left_in_peace() -> None:
    assert warnings(Gates([0.5, 0.5], [0.1, 0.0])) == []


def test_an_epoch_is_judged_by_its_mean_and_the_next_starts_afresh() -> None:
    gate = Gates([0.5], [0.1])
    watch = GateWatch(gate)  # type: ignore[arg-type]
    watch.step()
    gate.last_variance = torch.zeros(1)
    watch.step()
    assert watch.end_epoch() == []
    watch.step()
    assert len(watch.end_epoch()) == 1
    assert watch.end_epoch() == []


def test_the_same_warning_is_not_repeated_after_every_epoch() -> None:
    gate = Gates([1.0], [0.0])
    watch = GateWatch(gate)  # type: ignore[arg-type]
    warned = []
    for mean in (1.0, 1.0, 0.0, 1.0):
        gate.last_mean = torch.tensor([mean])
        watch.step()
        warned.append(len(watch.end_epoch()))
    assert warned == [1, 0, 1, 1]


def test_a_method_without_gates_has_nothing_to_warn_of() -> None:
    watch = GateWatch(None)
    watch.step()
    assert watch.end_epoch() == []
