"""The ends of a run that are not its success: finished already, and diverged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter
from tests.distributed.test_world_sizes import rows, tensors

pytestmark = pytest.mark.distributed
SHORT = ["checkpoint.every=3"]


def same_bits(run: Path, wanted: Path) -> None:
    expected, found = tensors(wanted), tensors(run)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    keys = ("step", "loss", "penalty", "accuracy", "gate_mean", "gate_variance", "top1")
    for kind in ("train", "evaluation"):
        ours = [[row.get(key) for key in keys] for row in rows(run, kind)]
        assert ours == [[row.get(key) for key in keys] for row in rows(wanted, kind)]


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
