"""The ends of a run that are not its success: finished already, and diverged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter

pytestmark = pytest.mark.distributed


def test_the_same_words_again_say_it_is_finished(words: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        ended = adafilter("train", *words, "train.epochs=1", folder=tmp_path)
        assert ended.code == 0, ended.output
    assert "already finished" in ended.output and "resume=never" in ended.output


def test_a_diverging_run_names_step_and_rate_and_keeps_the_last_good(
    words: list[str], tmp_path: Path
) -> None:
    more = [
        "optim.lr=1e30",
        "optim.schedule=constant",
        "checkpoint.every=3",
        "train.clip_norm=null",
    ]
    ended = adafilter("train", *words, *more, folder=tmp_path)
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    assert "at step" in ended.output and "1e+30" in ended.output
    status = json.loads((run_folder(tmp_path) / "status.json").read_text())
    assert status["state"] == "failed"
