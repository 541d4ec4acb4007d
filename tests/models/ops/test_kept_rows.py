"""Rows that are kept from call to call are those that a fresh copy would hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.inference.row_cache import RowCache

FILTERS = 20


def table(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * FILTERS, 3, 3, 4, generator=generator)
    return rows, torch.randn(2 * FILTERS, generator=generator)


def check(kept: RowCache, rows: Tensor, bias: Tensor, chosen: Tensor) -> None:
    for found, wanted in zip(kept.pick(rows, bias, chosen), (rows, bias), strict=True):
        assert torch.equal(found, wanted[chosen])


def choices() -> list[Tensor]:
    """All of one kind, half, the same again, and changes of one, few and most filters."""
    own = torch.arange(FILTERS)
    bits = [torch.zeros(FILTERS, dtype=torch.int64), torch.ones(FILTERS, dtype=torch.int64)]
    generator = torch.Generator().manual_seed(0)
    for flipped in (10, 0, 1, 3, 18, 20, 2):
        change = torch.zeros(FILTERS, dtype=torch.int64)
        change[torch.randperm(FILTERS, generator=generator)[:flipped]] = 1
        bits.append(bits[-1] ^ change)
    return [own + FILTERS * each for each in bits]


def test_a_sequence_of_choices() -> None:
    kept, (rows, bias) = RowCache(), table()
    places = set()
    for chosen in choices():
        check(kept, rows, bias, chosen)
        places.add(kept.pick(rows, bias, chosen)[0].data_ptr())
    assert len(places) == 1, "one buffer serves all"


def test_another_table_and_a_changed_one_are_noticed() -> None:
    kept, (rows, bias), (chosen, other, *_) = RowCache(), table(), choices()
    check(kept, rows, bias, chosen)
    check(kept, *table(1), chosen)
    check(kept, rows.double(), bias.double(), chosen)
    check(kept, rows, bias, chosen)
    rows.mul_(2)
    check(kept, rows, bias, chosen)
    check(kept, rows, bias, other)
    check(kept, rows, bias, other[:5])


def test_inference_mode_inside_and_outside() -> None:
    kept, (rows, bias) = RowCache(), table()
    for number, chosen in enumerate(choices()):
        with torch.inference_mode(number % 2 == 0):
            check(kept, rows, bias, chosen)
    with torch.inference_mode():
        made = table(2)
        check(kept, *made, choices()[0])
    check(kept, *made, choices()[2])


def test_an_interrupted_copy_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, (rows, bias), (first, second, *_) = RowCache(), table(), choices()
    check(kept, rows, bias, first)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept, "_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept.pick(rows, bias, second)
    kept._rows.zero_()
    check(kept, rows, bias, first)


def test_a_copy_starts_empty() -> None:
    kept, (rows, bias), (first, second, *_) = RowCache(), table(), choices()
    held = kept.pick(rows, bias, first)[0]
    other = copy.deepcopy(kept)
    check(other, rows, bias, second)
    assert torch.equal(held, rows[first])
