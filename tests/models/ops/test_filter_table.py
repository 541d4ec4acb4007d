"""A layout that is kept is the one of the filters as they are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.inference.filter_table import FilterTable, Laid, LaidFilters

FILTERS = 3


@pytest.fixture
def table() -> FilterTable:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * FILTERS, 1, 1, 4, generator=generator)
    bias = torch.randn(2 * FILTERS, generator=generator)
    numbers = torch.arange(FILTERS)
    return FilterTable(rows, bias, numbers, numbers + FILTERS)


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rows: Tensor, bias: Tensor, pairs: Tensor) -> Laid:
        self.calls += 1
        return Laid(rows[pairs], bias[pairs])


def test_it_is_made_once(table: FilterTable) -> None:
    lay_out = Counted()
    laid = table.laid_out(lay_out)
    assert torch.equal(laid.layouts[0], table.rows[:FILTERS])
    assert torch.equal(laid.layouts[1], table.rows[FILTERS:])
    assert torch.equal(laid.bias.flatten(), table.bias)
    again = FilterTable(*(table.rows, table.bias, table.frozen, table.tuned), laid=table.laid)
    assert again.laid_out(lay_out) is laid and lay_out.calls == 1


@pytest.mark.parametrize("name", ["rows", "bias", "frozen", "tuned"])
def test_it_is_made_again_when_something_was_loaded_or_replaced(
    table: FilterTable, name: str
) -> None:
    lay_out = Counted()
    table.laid_out(lay_out)
    with torch.no_grad():
        getattr(table, name).copy_(getattr(table, name).flip(0))
    assert torch.equal(table.laid_out(lay_out).layouts[1], table.rows[table.tuned])
    given = {each: getattr(table, each) for each in ("rows", "bias", "frozen", "tuned")}
    given[name] = given[name].clone()
    FilterTable(**given, laid=table.laid).laid_out(lay_out)
    assert lay_out.calls == 3


def test_made_in_inference_mode_it_serves_outside_too(table: FilterTable) -> None:
    lay_out = Counted()
    with torch.inference_mode():
        laid = table.laid_out(lay_out)
    assert not laid.layouts.is_inference()
    assert table.laid_out(lay_out) is laid


def test_copies_make_their_own(table: FilterTable) -> None:
    table.laid_out(Counted())
    for twin in (copy.deepcopy(table.laid), pickle.loads(pickle.dumps(table.laid))):
        assert isinstance(twin, LaidFilters)
        lay_out = Counted()
        twin.of(table, lay_out)
        assert lay_out.calls == 1


def test_rows_picked_without_buffers_stay(table: FilterTable) -> None:
    own = table.without_buffers()
    first, _ = own.picked(torch.tensor([0, 1, 2]))
    own.picked(torch.tensor([3, 4, 5]))
    assert torch.equal(first, table.rows[:FILTERS])
    kept, _ = table.picked(torch.tensor([0, 1, 2]))
    table.picked(torch.tensor([3, 4, 5]))
    assert torch.equal(kept, table.rows[FILTERS:])
    assert table.picked(None)[0] is table.rows
