"""When the real command saves: by steps, and by what saving is measured to cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.metrics import read_lines
from tests.distributed.conftest import run_folder
from tests.kills.attempts import ForkServer

pytestmark = pytest.mark.distributed
EPOCH = 26  # steps; each epoch ends with a save


def saved_steps(server: ForkServer, words: list[str], folder: Path, every: str) -> list[int]:
    more = [f"checkpoint.every={every}", "train.epochs=1"]
    attempt = server.fork(["train", *words, *more], folder=folder)
    assert attempt.wait() == 0, attempt.printed()
    events = read_lines(run_folder(folder) / "events.jsonl")
    saves = [event for event in events if event["kind"] == "saved"]
    assert all(event["stall"] > 0 and event["seconds"] > 0 for event in saves)
    return [event["step"] for event in saves]


def test_by_steps(server: ForkServer, words: list[str], tmp_path: Path) -> None:
    assert saved_steps(server, words, tmp_path, "7") == [7, 14, 21, EPOCH]


def test_auto_measures_a_first_save_after_some_twenty_steps(
    server: ForkServer, words: list[str], tmp_path: Path
) -> None:
    first, *_, last = saved_steps(server, words, tmp_path, "auto")
    assert 20 <= first < EPOCH
    assert last == EPOCH
