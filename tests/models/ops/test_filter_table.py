"""A layout that is kept is the one of the filters as they are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.inference.filter_table import FilterLayout, FilterTable, LayoutCache

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

    def __call__(self, rows: Tensor, bias: Tensor, pairs: Tensor) -> FilterLayout:
        self.calls += 1
        return FilterLayout(rows[pairs], bias[pairs])


def test_it_is_made_once(table: FilterTable) -> None:
    make_layout = Counted()
    laid = table.layout(make_layout)
    assert torch.equal(laid.layouts[0], table.rows[:FILTERS])
    assert torch.equal(laid.layouts[1], table.rows[FILTERS:])
    assert torch.equal(laid.bias.flatten(), table.bias)
    again = FilterTable(
        *(table.rows, table.bias, table.frozen, table.tuned), layout_cache=table.layout_cache
    )
    assert again.layout(make_layout) is laid and make_layout.calls == 1


@pytest.mark.parametrize("name", ["rows", "bias", "frozen", "tuned"])
def test_it_is_made_again_when_something_was_loaded_or_replaced(
    table: FilterTable, name: str
) -> None:
    make_layout = Counted()
    table.layout(make_layout)
    with torch.no_grad():
        getattr(table, name).copy_(getattr(table, name).flip(0))
    assert torch.equal(table.layout(make_layout).layouts[1], table.rows[table.tuned])
    given = {each: getattr(table, each) for each in ("rows", "bias", "frozen", "tuned")}
    given[name] = given[name].clone()
    FilterTable(**given, layout_cache=table.layout_cache).layout(make_layout)
    assert make_layout.calls == 3


def test_made_in_inference_mode_it_serves_outside_too(table: FilterTable) -> None:
    make_layout = Counted()
    with torch.inference_mode():
        laid = table.layout(make_layout)
    assert not laid.layouts.is_inference()
    assert table.layout(make_layout) is laid


def test_copies_make_their_own(table: FilterTable) -> None:
    table.layout(Counted())
    for twin in (copy.deepcopy(table.layout_cache), pickle.loads(pickle.dumps(table.layout_cache))):
        assert isinstance(twin, LayoutCache)
        make_layout = Counted()
        twin.of(table, make_layout)
        assert make_layout.calls == 1


def test_rows_picked_without_buffers_stay(table: FilterTable) -> None:
    own = table.without_buffers()
    first, _ = own.gather(torch.tensor([0, 1, 2]))
    own.gather(torch.tensor([3, 4, 5]))
    assert torch.equal(first, table.rows[:FILTERS])
    kept, _ = table.gather(torch.tensor([0, 1, 2]))
    table.gather(torch.tensor([3, 4, 5]))
    assert torch.equal(kept, table.rows[FILTERS:])
    assert table.gather(None)[0] is table.rows
