"""Training is a function of the recipe, not of how many ranks ran it (E4), in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter
from tests.distributed.watching import ranks

pytestmark = pytest.mark.distributed
STEPS = 50
GATES = ("gate_mean", "gate_variance", "gate_drift")


def rows(run: Path, kind: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def alone(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(words, None, tmp_path_factory.mktemp("alone"))


def train(words: list[str], world_size: int | None, folder: Path, *more: str) -> Path:
    """A whole run: alone (None), or by so many ranks."""
    if world_size is None:
        ended = adafilter("train", *words, *more, folder=folder)
        assert ended.code == 0, ended.output
        return run_folder(folder)
    with ranks(["train", *words, *more], world_size, folder) as started:
        for rank in started:
            assert rank.end().code == 0, rank.output
    return run_folder(folder)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("step-*"))
    return load_file(newest / "model.safetensors") | {
        f"momentum {name}": tensor
        for name, tensor in load_file(newest / "optimizer.safetensors").items()
    }


# Of four micro-batches one rank takes three and one, two ranks take two each.
@pytest.mark.parametrize(
    ("world_size", "together"),
    [(1, 1), (2, 1), (3, 1), pytest.param(4, 1, marks=pytest.mark.long), (1, 3), (2, 2)],
)
def test_losses_statistics_and_weights_agree_to_1e_9(
    words: list[str], alone: Path, tmp_path: Path, world_size: int, together: int
) -> None:
    run = train(words, world_size, tmp_path, f"train.micro_batches_per_forward={together}")
    wanted, found = rows(alone, "train"), rows(run, "train")
    assert len(wanted) == len(found) >= STEPS
    for ours, theirs in zip(found, wanted, strict=True):
        for key in ("loss", "penalty", "accuracy", *GATES, "gate_gradient"):
            assert abs(ours[key] - theirs[key]) <= 1e-9, (ours["step"], key)
    assert any(row["loss"] != wanted[0]["loss"] for row in wanted[1:])
    expected, ours_tensors = tensors(alone), tensors(run)
    assert any("running_var" in name for name in expected)
    for name, tensor in expected.items():
        distance = (ours_tensors[name].double() - tensor.double()).abs().max().item()
        assert distance <= 1e-9, (name, distance)
    (theirs_eval,), (ours_eval,) = rows(alone, "evaluation")[-1:], rows(run, "evaluation")[-1:]
    assert ours_eval["top1"] == theirs_eval["top1"]
    validated = [
        [row for row in rows(one, "evaluation") if row["split"] == "val"] for one in (alone, run)
    ]
    assert len(validated[0]) == len(validated[1]) > 0
    for theirs, ours in zip(*validated, strict=True):
        for key in ("gate_mean", "gate_drift", "gate_moved", "gate_changed", "gate_between"):
            assert abs(ours[key] - theirs[key]) <= 1e-9, key


def test_one_process_twice_gives_the_same_bits(
    words: list[str], alone: Path, tmp_path: Path
) -> None:
    again = train(words, None, tmp_path)
    expected, found = tensors(alone), tensors(again)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    keys = ("step", "loss", "accuracy", "penalty")
    assert [[r[k] for k in keys] for r in rows(again, "train")] == [
        [r[k] for k in keys] for r in rows(alone, "train")
    ]
