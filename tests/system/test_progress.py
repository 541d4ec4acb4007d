"""The display of counted work: a bar on a terminal, lines elsewhere, nothing on a quiet console."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from adafilter_dist.system.progress import counting, duration


class Clock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(*, terminal: bool, quiet: bool = False) -> str:
    """What 90 pictures show, ten of them every 10 s."""
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=terminal, width=120, quiet=quiet)
    with counting(console, "predicting [x]", 90, clock=clock) as done:
        for number in range(10, 100, 10):
            clock.now += 10.0
            done(number)
    return file.getvalue()


def test_a_plain_line_every_30_seconds() -> None:
    assert shown(terminal=False).splitlines() == [
        "predicting [x]: 30 of 90 pictures, 1/s, 1:00 left",
        "predicting [x]: 60 of 90 pictures, 1/s, 0:30 left",
        "predicting [x]: 90 of 90 pictures, 1/s, 0:00 left",
    ]


def test_a_bar_on_a_terminal_with_count_and_rate() -> None:
    bar = shown(terminal=True)
    assert "predicting [x]" in bar and "90/90" in bar and "1 pictures/s" in bar


@pytest.mark.parametrize("terminal", [True, False])
def test_the_other_ranks_show_nothing(terminal: bool) -> None:
    assert shown(terminal=terminal, quiet=True) == ""


def test_duration() -> None:
    assert [duration(s) for s in (0, 61, 3599.7, 36061)] == ["0:00", "1:01", "1:00:00", "10:01:01"]
