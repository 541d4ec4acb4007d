"""What a loader's threads cost, in small."""

from __future__ import annotations

import sys

import loader_threads
import pytest


def test_costs_of_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pictures", "40", "--steps", "3", "--repeats", "1", "--loaders", "numba"]
    monkeypatch.setattr(sys, "argv", ["loader_threads.py", *words])
    loader_threads.main()
    _, memory, numba = capsys.readouterr().out.splitlines()
    assert memory.startswith("in memory") and "(1.000), slept" in memory
    assert numba.startswith("numba")


def test_a_clock_tells_sleep_from_work() -> None:
    before = loader_threads.Clock.now()
    sum(range(10**6))
    worked = loader_threads.Clock.now()
    assert worked.cpu - before.cpu > 0.002
    loader_threads.time.sleep(0.05)
    slept = loader_threads.Clock.now()
    assert slept.slept(worked) > 0.045 > worked.slept(before)
