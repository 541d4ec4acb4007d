"""A run knows the gates that it started with, also when it goes on, and what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.evaluate.gate_probe import MOVED, ProbeGates
from adafilter_dist.run.files import RunFiles
from tests.shared.real_pictures import thumbnails

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run of a small network on thumbnails, three steps an epoch; prepared."""
    rows = ["path,label,split"]
    for number, picture in enumerate(thumbnails()):
        split = ("test", "val", "train", "train")[number % 4]
        rows.append(f"{picture},{picture.name.partition('_')[0]},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    (tmp_path / "small.yaml").write_text(
        f"name: small\nrun_dir: {tmp_path / 'run'}\n"
        f"data: {{name: imagefolder, csv: {tmp_path / 'list.csv'}, stored_size: 32,\n"
        "       resolution: 32, eval_resize: 32, num_workers: 1, loader: torchvision}\n"
        "model: {name: timm/test_resnet, weights: null}\n"
        "method: {gate: {hidden: 8, recipe: paper}}\n"
        "train: {global_batch: 6, micro_batch: 3, epochs: 1}\n"
        "engine: {device: cpu, threads: 1}\nlog: {to: [], every: 1}\n"
    )
    words = [f"recipe={tmp_path / 'small.yaml'}"]
    assert main(["prepare", *words]) == 0
    return words


def rows_of(run: RunFiles, kind: str) -> list[dict[str, Any]]:
    return [row for row in run.read_metrics() if row["kind"] == kind]


def test_a_resumed_run_knows_its_start(words: list[str], tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    assert main(["train", *words, "optim.lr_gate=5"]) == 0
    start = ProbeGates.read(run.gates_at_start)
    assert start is not None and start.split == "val" and len(start.labels) == 10
    (first,) = (row for row in rows_of(run, "evaluation") if row["split"] == "val")
    assert first["gate_drift"] == first["gate_mean"] - start.mean != 0
    assert 0 < first["gate_changed"] < 1 and first["gate_within"] > 0
    steps = rows_of(run, "train")
    assert all(row["gate_drift"] == row["gate_mean"] - start.mean for row in steps)
    assert all(row["gate_gradient"] > 0 for row in steps[1:])  # F = S at the first: no gradient
    assert steps[0]["gate_gradient"] == 0

    # An attempt that loads a checkpoint finds the same start again where the file is gone.
    run.gates_at_start.unlink()
    longer = ["resume", str(run.run), "optim.schedule_on_extend=stretch"]
    assert main([*longer, "train.epochs=2"]) == 0
    again = ProbeGates.read(run.gates_at_start)
    assert again is not None and np.array_equal(again.bits, start.bits)
    last = [row for row in rows_of(run, "evaluation") if row["split"] == "val"][-1]
    assert last["epoch"] == 1 and last["gate_drift"] == last["gate_mean"] - start.mean

    # Without the measures of gates it is not looked for.
    run.gates_at_start.unlink()
    assert main([*longer, "train.epochs=3", "evaluate.gates=false"]) == 0
    assert not run.gates_at_start.exists()
    assert all("gate_drift" not in row for row in run.read_metrics() if row["epoch"] == 2)
    assert json.loads((run.figures / "summary.json").read_text())["gate_movement"] is None


def test_a_gate_that_cannot_learn_is_warned_of(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFiles(tmp_path / "run")
    assert main(["train", *words, "optim.lr_gate=1e-12", "optim.lr=1e-9"]) == 0
    out = capsys.readouterr().out
    assert out.count("warning: the mean gate never left its start") == 1
    (event,) = (row for row in run.read_events() if row["kind"] == "gates" and "epoch" not in row)
    assert "never left its start" in event["warning"]
    summary = json.loads((run.figures / "summary.json").read_text())["gate_movement"]
    assert summary["moved"] < MOVED and summary["pictures"] == 10
    assert main(["evaluate", str(run.run)]) == 0
    out = capsys.readouterr().out
    assert "never left its start" in out and "since start" in out and "(10 pictures of val)" in out
    run.gates_at_start.write_bytes(b"damaged")
    assert main(["evaluate", str(run.run)]) == 0
    assert "start" not in capsys.readouterr().out
