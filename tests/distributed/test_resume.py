"""Killed or stopped anywhere, a run ends with the bits of one that was not (simple form)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter, start, wait
from tests.distributed.test_world_sizes import rows, tensors

pytestmark = pytest.mark.distributed
SHORT = ["checkpoint.every=3"]


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = adafilter("train", *words, *SHORT, folder=folder)
    assert ended.code == 0, ended.output
    return run_folder(folder)


def events(folder: Path) -> list[dict[str, Any]]:
    found = list((folder / "runs").glob("*/*/events.jsonl"))
    lines = found[0].read_text().splitlines(keepends=True) if found else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def await_saves(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    """Return once the run has saved ``number`` times; fail if it ends or takes 2 minutes."""
    until = time.monotonic() + 120
    while sum(event["kind"] == "saved" for event in events(folder)) < number:
        if process.poll() is not None or time.monotonic() > until:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"no {number} saves: {process.communicate()[0]}")
        time.sleep(0.02)


def same_bits(run: Path, wanted: Path) -> None:
    expected, found = tensors(wanted), tensors(run)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    keys = ("step", "loss", "penalty", "accuracy", "gate_mean", "gate_variance")
    for kind in ("train", "evaluation"):
        ours = [[row.get(key) for key in (*keys, "top1")] for row in rows(run, kind)]
        theirs = [[row.get(key) for key in (*keys, "top1")] for row in rows(wanted, kind)]
        assert ours == theirs


def test_killed_twice(words: list[str], undisturbed: Path, tmp_path: Path) -> None:
    for saves in (1, 4):
        process = start(["train", *words, *SHORT], folder=tmp_path)
        await_saves(process, tmp_path, saves)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        process.communicate()
    ended = adafilter("train", *words, *SHORT, folder=tmp_path)
    assert ended.code == 0, ended.output
    assert "going on from step" in ended.output
    assert "not bit-exact" not in ended.output
    same_bits(run_folder(tmp_path), undisturbed)


def test_term_to_one_process_stops_saves_and_resumes(
    words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    process = start(["train", *words, *SHORT], folder=tmp_path)
    await_saves(process, tmp_path, 1)
    process.terminate()
    ended = wait(process, 60)
    assert ended.code == 75, ended.output
    run = run_folder(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "SIGTERM")
    assert f"adafilter resume {run.relative_to(tmp_path)}" in ended.output
    stopped_at = status["step"]
    assert rows(run, "train")[-1]["step"] == stopped_at
    ended = adafilter("resume", str(run), folder=tmp_path)  # the very line it printed
    assert ended.code == 0, ended.output
    assert f"going on from step {stopped_at} " in ended.output  # no step is repeated
    same_bits(run, undisturbed)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["attempt"]) == ("finished", 2)


def test_term_to_one_rank_of_two_stops_both(
    words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    process = start(["train", *words, *SHORT], world_size=2, folder=tmp_path)
    await_saves(process, tmp_path, 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if rank_of(pid) == "1"]
    assert len(ranks) == 1
    os.kill(int(ranks[0]), signal.SIGTERM)
    ended = wait(process, 90)
    assert ended.code == 0, ended.output  # under torchrun a clean stop is no failure
    run = run_folder(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "asked on another rank")
    ended = adafilter("train", *words, *SHORT, world_size=2, folder=tmp_path)
    assert ended.code == 0, ended.output
    assert f"going on from step {status['step']} " in ended.output
    expected, found = tensors(undisturbed), tensors(run)
    for name, tensor in expected.items():
        assert (found[name].double() - tensor.double()).abs().max().item() <= 1e-9, name


def rank_of(pid: str) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair).get("RANK", "")


def test_the_same_words_again_say_it_is_finished(words: list[str], undisturbed: Path) -> None:
    folder = undisturbed.parents[2]
    ended = adafilter("train", *words, *SHORT, folder=folder)
    assert ended.code == 0
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
