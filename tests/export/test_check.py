"""What is taken for rounding, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adafilter_dist.errors import CheckFailedError
from adafilter_dist.export.check import Answers, Check, compare

LAYERS = [("first", 2), ("second", 3)]


def answers() -> Answers:
    """Four pictures, three classes, five gates."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gates = torch.tensor([[2.0, -1, 3, -2, 1]] * 4, dtype=torch.float64)
    gates[1, 3] = -2e-4  # almost 0
    return Answers(logits, gates)


def changed(picture: int, by: float = 0.0, gate: int | None = None) -> Answers:
    """Others for one picture: a logit, and the sign of a gate."""
    logits, gates = answers().logits.clone(), answers().gates.clone()
    logits[picture, 0] += by
    if gate is not None:
        gates[picture, gate] *= -1
    return Answers(logits, gates)


def check(exported: Answers) -> Check:
    return compare(answers(), exported, LAYERS, "these")


def test_rounding_is_told() -> None:
    found = check(changed(2, by=1e-5))
    assert found.largest == pytest.approx(1e-5) and found.same_top1 == found.pictures == 4
    assert found.flipped == 0 and "another path" not in found.line()


def test_other_logits_are_refused() -> None:
    with pytest.raises(CheckFailedError, match=r"differ by up to 0\.5 .* on 1 of 4"):
        check(changed(2, by=0.5))
    with pytest.raises(CheckFailedError, match="no finite numbers for 1 of 4"):
        check(changed(2, by=float("nan")))
    with pytest.raises(CheckFailedError, match=r"gives \(4, 2\)"):
        check(Answers(answers().logits[:, :2], answers().gates))


def test_a_gate_of_almost_zero_may_flip_and_then_anything_may_follow() -> None:
    found = check(changed(1, by=9.0, gate=3))
    assert found.flipped == 1 and found.largest == 0 and "1 took another path" in found.line()


def test_any_other_gate_may_not() -> None:
    with pytest.raises(CheckFailedError, match=r"a gate of layer second, whose logit is 2, "):
        check(changed(2, gate=3))
    # Before the layer in which a gate of almost 0 flips nothing may differ.
    both = changed(1, gate=3)
    both.gates[1, 0] *= -1
    with pytest.raises(CheckFailedError, match="a gate of layer first"):
        check(both)
    # Nor is it the other pictures' excuse.
    with pytest.raises(CheckFailedError, match="differ by up to"):
        check(replace(both, gates=changed(1, gate=3).gates, logits=changed(0, by=1.0).logits))


def test_pictures_that_cannot_be_compared_are_no_check() -> None:
    gates = answers().gates
    gates[:, 3] = -1e-5
    flipped = gates.clone()
    flipped[:3, 3] *= -1
    with pytest.raises(CheckFailedError, match="flip on 3 of 4"):
        compare(Answers(answers().logits, gates), Answers(answers().logits, flipped), LAYERS, "")
