"""Rounds turn and warm-ups do not count; medians, quartiles and both ratios are right."""

from __future__ import annotations

import math

import pytest
import torch
from bench.reporting import Column, Table, slug
from bench.timing import Clock, Ratio, Spread, interleave, phase


def test_every_round_runs_all_and_the_order_turns() -> None:
    ran: list[str] = []

    def work(name: str) -> dict[str, float]:
        ran.append(name)
        return {"step": float(len(ran))}

    said: list[str] = []
    works = {name: (lambda name=name: work(name)) for name in "ABC"}
    found = interleave(works, 4, said.append, warm_up=1)  # type: ignore[arg-type]
    rounds = ["".join(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert all(sorted(one) == ["A", "B", "C"] for one in rounds)
    assert rounds[1:] == ["ABC", "BCA", "CAB", "ABC"]
    assert phase(found["A"], "step") == [4, 9, 11, 13]  # without the warm-up
    assert len(said) == 5 and said[0].startswith("warm-up") and "4/4" in said[-1]


def test_quartiles_are_those_of_the_values() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_the_ratio_by_round_forgives_a_disturbed_round() -> None:
    # In the last two rounds everything takes ten times as long.
    plain, ours = [1.0, 1.0, 10.0, 10.0], [2.0, 2.0, 20.0, 2.0]
    ratio = Ratio.of(ours, plain)
    assert ratio.of_medians == pytest.approx(2.0 / 5.5)
    assert ratio.by_round == pytest.approx(2.0)


def test_phases_lie_between_marks() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):  # a second start forgets the first
        clock.start()
        clock.mark()
        torch.randn(400, 400) @ torch.randn(400, 400)
        clock.mark()
    nothing, product = clock.phases()
    assert 0 <= nothing < product


def test_a_table_keeps_numbers_whole_and_refuses_what_is_none() -> None:
    table = Table("Title", [Column("variant"), Column("ms", 1)])
    table.add("a", 1234.5678)
    table.add("b", None)
    assert table.markdown().splitlines()[2:] == [
        "| variant | ms |",
        "|---|---:|",
        "| a | 1,234.6 |",
        "| b |  |",
    ]
    assert table.csv({"torch": "x"}) == "# torch: x\nvariant,ms\na,1234.5678\nb,\n"
    with pytest.raises(ValueError, match="not finite"):
        table.add("c", math.nan)
    with pytest.raises(ValueError, match="2 columns"):
        table.add("c")


def test_names_of_hardware_become_parts_of_file_names() -> None:
    assert slug("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz") == (
        "intel-xeon-platinum-8375c-2.90ghz"
    )
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("timm/resnet26") == "timm-resnet26"
