"""The compiled kernel against torch's convolution, picture by picture."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.models.fold import BareConv
from adafilter_dist.models.ops import choosing, selected_cpu
from adafilter_dist.models.ops.choosing import choose
from adafilter_dist.models.ops.kept_rows import KeptRows
from adafilter_dist.models.ops.selected_cpu import can_compute, selected_conv
from tests.models.ops.test_choosing import SHAPES, case

needs_compiler = pytest.mark.skipif(
    selected_cpu._kernel() is None, reason="no compiler, or ADAFILTER_NATIVE=0"
)
pytestmark = [pytest.mark.may_skip("needs a compiler"), needs_compiler]
PLAIN = [shape for shape in SHAPES if "groups" not in shape]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_against_torch(shape: dict[str, object]) -> None:
    given = case(**shape, dtype=torch.float32)  # type: ignore[arg-type]
    conv = BareConv(given.conv)
    assert can_compute(conv, given.x, given.rows)
    y = selected_conv(conv, given.x, given.rows, given.bias, given.chosen)
    assert y.is_contiguous(memory_format=torch.channels_last)
    given.x, given.rows, given.bias = (t.double() for t in (given.x, given.rows, given.bias))
    torch.testing.assert_close(y.double(), given.wanted(), rtol=1e-4, atol=1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    given = case(5, (13, 11), (40, 150), padding=1, dtype=torch.float32)
    conv, made = BareConv(given.conv), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        made.append(selected_conv(conv, given.x, given.rows, given.bias, given.chosen))
    assert all(torch.equal(one, made[0]) for one in made)


def test_a_picture_is_computed_the_same_alone() -> None:
    given = case(7, channels=(33, 70), padding=1, dtype=torch.float32)
    conv = BareConv(given.conv)
    together = selected_conv(conv, given.x, given.rows, given.bias, given.chosen)
    alone = [
        selected_conv(conv, given.x[i : i + 1], given.rows, given.bias, given.chosen[i : i + 1])
        for i in range(7)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_what_it_does_not_do() -> None:
    given = case(dtype=torch.float32)
    conv = BareConv(given.conv)
    assert can_compute(conv, given.x, given.rows)
    assert not can_compute(conv, given.x.double(), given.rows.double())
    assert not can_compute(conv, given.x.clone().requires_grad_(), given.rows)
    assert not can_compute(BareConv(case(groups=2).conv), given.x, given.rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_compute(conv, given.x, given.rows)


def test_without_it_other_ways_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(6, dtype=torch.float32)
    args = (BareConv(given.conv), given.x, given.rows, given.bias, given.chosen)
    used: list[int] = []

    def watched(*given: object) -> torch.Tensor:
        used.append(1)
        return selected_conv(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(choosing, "selected_conv", watched)
    with_kernel = choose(*args, KeptRows())
    assert used == [1]
    monkeypatch.setattr(selected_cpu, "_kernel", lambda: None)
    without = choose(*args, KeptRows())
    assert used == [1]
    torch.testing.assert_close(with_kernel, without, rtol=1e-4, atol=1e-4)
