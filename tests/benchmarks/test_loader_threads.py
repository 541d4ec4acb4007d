"""What a loader's threads cost, in small."""

from __future__ import annotations

import sys

import loader_threads
import pytest


@pytest.mark.slow
def test_costs_of_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pictures", "70", "--steps", "2", "--repeats", "1", "--loaders", "numba"]
    monkeypatch.setattr(sys, "argv", ["loader_threads.py", *words, "--models", "resnet18"])
    loader_threads.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| resnet18")]
    assert [row.split("|")[2].strip() for row in rows] == [
        loader_threads.MEMORY,
        loader_threads.ELSEWHERE,
        "numba",
    ]
    assert rows[0].split("|")[4].strip() == "1.000"


def test_a_clock_tells_sleep_from_work() -> None:
    before = loader_threads.Clock.now()
    sum(range(10**6))
    worked = loader_threads.Clock.now()
    assert worked.cpu - before.cpu > 0.002
    loader_threads.time.sleep(0.05)
    slept = loader_threads.Clock.now()
    assert slept.slept(worked) > 0.045 > worked.slept(before)
