"""The compiled kernel against torch's convolution, picture by picture."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.models.inference import choose_kernel, selected_cpu
from adafilter_dist.models.inference.choose_kernel import choose
from adafilter_dist.models.inference.filter_table import FilterTable
from adafilter_dist.models.inference.fold_batchnorm import BareConv
from adafilter_dist.models.inference.selected_cpu import can_compute, selected_conv
from tests.models.ops.test_choosing import SHAPES, case

needs_compiler = pytest.mark.skipif(
    selected_cpu._library() is None, reason="no compiler, or ADAFILTER_NATIVE=0"
)
pytestmark = [pytest.mark.may_skip("needs a compiler"), needs_compiler]
# More products and filters than a block holds, with a rest of each.
DEEP = {"images": 4, "size": (5, 5), "channels": (130, 150), "padding": 1}
DILATED = {**DEEP, "channels": (260, 70), "dilation": 2, "padding": 2}
PLAIN = [*(shape for shape in SHAPES if "groups" not in shape), DEEP, DILATED]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_against_torch(shape: dict[str, object]) -> None:
    given = case(**shape, dtype=torch.float32)  # type: ignore[arg-type]
    conv = BareConv(given.conv)
    assert can_compute(conv, given.x, given.table)
    y = selected_conv(conv, given.x, given.table, given.bits)
    assert y.is_contiguous(memory_format=torch.channels_last)
    given.x, given.rows, given.bias = (t.double() for t in (given.x, given.rows, given.bias))
    torch.testing.assert_close(y.double(), given.wanted(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [DEEP, DILATED], ids=str)
def test_what_stands_behind_comes_after_the_last_product(shape: dict[str, object]) -> None:
    """Where the sums of a filter are visited more than once."""
    given = case(**shape, dtype=torch.float32)  # type: ignore[arg-type]
    wanted, draw = given.wanted(), torch.Generator().manual_seed(1)
    residual = 10 * torch.randn(wanted.shape, generator=draw)
    conv = BareConv(given.conv)
    for more in (None, residual):
        y = selected_conv(conv, given.x, given.table, given.bits, more, relu=True)
        whole = wanted if more is None else wanted + more
        torch.testing.assert_close(y, whole.relu(), rtol=1e-4, atol=1e-3)


def test_a_settled_filter_is_the_same_for_both_bits() -> None:
    given = case(4, channels=(5, 70), padding=1, dtype=torch.float32)
    numbers = torch.arange(70)
    tuned = torch.where(numbers % 3 == 0, numbers, numbers + 70)
    table = FilterTable(given.rows, given.bias, numbers, tuned)
    conv = BareConv(given.conv)
    y = selected_conv(conv, given.x, table, given.bits)
    given.table = table
    torch.testing.assert_close(y, given.wanted(), rtol=1e-4, atol=1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    given = case(5, (13, 11), (40, 150), padding=1, dtype=torch.float32)
    conv, made = BareConv(given.conv), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        made.append(selected_conv(conv, given.x, given.table, given.bits))
    assert all(torch.equal(one, made[0]) for one in made)


def test_a_picture_is_computed_the_same_alone() -> None:
    given = case(7, channels=(33, 70), padding=1, dtype=torch.float32)
    conv = BareConv(given.conv)
    together = selected_conv(conv, given.x, given.table, given.bits)
    alone = [
        selected_conv(conv, given.x[i : i + 1], given.table, given.bits[i : i + 1])
        for i in range(7)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_what_it_does_not_do() -> None:
    given = case(dtype=torch.float32)
    conv = BareConv(given.conv)
    assert can_compute(conv, given.x, given.table)
    assert not can_compute(conv, given.x.double(), case().table)
    assert not can_compute(conv, given.x.clone().requires_grad_(), given.table)
    assert not can_compute(BareConv(case(groups=2).conv), given.x, given.table)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_compute(conv, given.x, given.table)


def test_without_it_other_ways_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(6, dtype=torch.float32)
    args = (BareConv(given.conv), given.x, given.table, given.bits)
    used: list[int] = []

    def watched(*given: object) -> torch.Tensor:
        used.append(1)
        return selected_conv(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(choose_kernel, "selected_conv", watched)
    with_kernel = choose(*args)
    assert used == [1]
    monkeypatch.setattr(selected_cpu, "_library", lambda: None)
    without = choose(*args)
    assert used == [1]
    torch.testing.assert_close(with_kernel, without, rtol=1e-4, atol=1e-4)
