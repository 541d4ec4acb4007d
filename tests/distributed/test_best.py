"""best/ gone or damaged: said before anything goes on, written again, never a dead end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adafilter_dist.metrics import read_lines
from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs; keep=2 leaves the checkpoints of both ends."""
    folder = tmp_path_factory.mktemp("trained")
    ended = adafilter("train", *words, "evaluate.gates=false", folder=folder)
    assert ended.code == 0, ended.output
    run = run_folder(folder)
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
    assert sorted(steps) == [26, 52]
    return run


def weights(run: Path) -> bytes:
    return (run / "best" / "model.safetensors").read_bytes()


def scores_on_test(run: Path) -> list[float]:
    return [row["top1"] for row in read_lines(run / "metrics.jsonl") if row.get("split") == "test"]


@pytest.mark.parametrize("damage", ["removed", "bit"])
def test_it_is_written_again_from_the_checkpoint_of_its_epoch(
    trained: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    if damage == "removed":
        shutil.rmtree(run / "best")
    else:
        content = bytearray(weights(run))
        content[-500] ^= 1
        (run / "best" / "model.safetensors").write_bytes(content)
    refused = adafilter("evaluate", str(run), folder=tmp_path)
    assert refused.code == 2 and len(refused.output.splitlines()) == 1
    assert f"adafilter resume {run}" in refused.output
    again = adafilter("resume", str(run), folder=tmp_path)
    assert again.code == 0, again.output
    reason, _, rest = again.output.partition("It is written again from ")
    assert "best/" in reason
    # The last checkpoint is from before the last validation, so that one is done again.
    assert rest.startswith(f"{run}/checkpoints/step-{26:09d}")
    assert weights(run) == weights(trained)
    assert scores_on_test(run) == scores_on_test(trained)


def test_where_that_checkpoint_is_not_kept_the_reason_and_the_way_on_come_first(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "checkpoints" / f"step-{26:09d}")
    again = adafilter("resume", str(run), folder=tmp_path)
    assert again.code == 0, again.output
    said, going_on = again.output.index("no longer kept"), again.output.index("going on from")
    assert said < going_on
    assert (run / "best" / "config.json").is_file() and len(scores_on_test(run)) == 1
    rows = read_lines(run / "metrics.jsonl")
    evaluated = [row["step"] for row in rows if row["kind"] == "evaluation"]
    assert evaluated == [26, 52, 52]  # each once, and the test set at the end


def test_a_finished_run_of_which_only_results_are_left_stays_finished(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "checkpoints")
    again = adafilter("resume", str(run), folder=tmp_path)
    assert again.code == 0, again.output
    assert "already finished" in again.output
    assert "no checkpoint left to write it from" in again.output
