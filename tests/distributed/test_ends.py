"""The ends of a run that are not its success: finished already, and diverged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from adafilter_dist.metrics import read_lines
from adafilter_dist.report.outcomes import read_test_outcomes
from adafilter_dist.run.files import RunFiles
from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter, free_port, rank_environment, start, wait

pytestmark = pytest.mark.distributed


def test_the_end_of_a_short_run_and_the_same_words_again(words: list[str], tmp_path: Path) -> None:
    short = (*words, "train.epochs=1")
    first = adafilter("train", *short, "log.every=1000", folder=tmp_path, figures=True)
    run = run_folder(tmp_path)
    # However short, it has a curve.
    rows = [row for row in read_lines(run / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) >= 10
    again = adafilter("train", *short, "--gates", folder=tmp_path)
    assert (first.code, again.code) == (0, 0), first.output + again.output
    assert "already finished" in again.output and "resume=never" in again.output
    # Its accuracy comes first, its gates are in a file, and there is nothing to resume.
    for output in (first.output, again.output):
        assert "adafilter resume" not in output
        assert 0 < output.index("AdaFilter  ") < output.index("\ngates ")
    assert "layer4" in (run / "figures" / "gates.txt").read_text()
    assert "layer4.0.conv2" not in first.output and "layer4.0.conv2" in again.output
    for name in ("summary.json", "gates.txt", "gates.png"):
        assert str(run.relative_to(tmp_path) / "figures" / name) in first.output
    assert f"page        {(run / 'report.html').relative_to(tmp_path)}" in first.output
    assert "<h1>" in (run / "report.html").read_text()
    # What it said of each test picture is kept.
    outcomes, summary = (
        read_test_outcomes(run),
        json.loads(RunFiles(run).figures.joinpath("summary.json").read_text()),
    )
    assert outcomes.correct.mean() == summary["evaluation"]["top1"]
    assert len(outcomes.losses) == summary["evaluation"]["n"]
    # So is what it took; filters that are held still are among the values, and not trained.
    cost, state = summary["cost"], safetensors.torch.load_file(run / "best" / "model.safetensors")
    steps = RunFiles(run).read_status()["total_steps"]
    assert cost["steps"] == steps and cost["step_seconds"] > 0 and cost["step_cpu_seconds"] > 0
    values = sum(tensor.numel() for tensor in state.values())
    assert 0 < cost["trained_parameters"] < values < cost["peak_memory"]


def test_a_diverging_run_names_step_and_rate_and_keeps_the_last_good(
    words: list[str], tmp_path: Path
) -> None:
    more = [
        "optim.lr=1e4",
        "optim.weight_decay=100",  # weights grow a million times a step
        "optim.schedule=constant",
        "checkpoint.every=100",  # a save would find it first
        "train.clip_norm=null",
    ]
    ended = adafilter("train", *words, *more, folder=tmp_path)
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    assert "at step" in ended.output and "learning rate 10000" in ended.output
    status = json.loads((run_folder(tmp_path) / "status.json").read_text())
    assert status["state"] == "failed"


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_never_come_are_one_line(words: list[str], tmp_path: Path, rank: int) -> None:
    place = rank_environment(rank, 2, free_port())
    more = ["engine.timeout=3s"]
    ended = wait(start(["train", *words, *more], folder=tmp_path, environment=place), 300)
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {rank} on ") and f":{place['MASTER_PORT']} within" in line
    assert "WORLD_SIZE processes" in line and ("1 of 2 came" in line) == (rank == 0)
    assert not (tmp_path / "runs").exists()
