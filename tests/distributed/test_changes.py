"""A run that goes on with other words: longer, in batches of another size, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from adafilter_dist.metrics import read_lines
from tests.distributed.launch import adafilter
from tests.distributed.test_world_sizes import rows

pytestmark = pytest.mark.distributed
STEPS = 26  # an epoch of the small recipe


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch under a cosine, finished."""
    folder = tmp_path_factory.mktemp("finished")
    short = [f"run_dir={folder / 'run'}", "train.epochs=1", "evaluate.gates=false"]
    ended = adafilter("train", *words, *short, folder=folder)
    assert ended.code == 0, ended.output
    return folder / "run"


def test_a_finished_run_is_extended_only_when_the_schedule_is_settled(
    words: list[str], finished: Path
) -> None:
    folder = finished.parent
    ended = adafilter("resume", str(finished), "train.epochs=2", folder=folder)
    assert ended.code == 2, ended.output
    assert "train.epochs: 1 -> 2" in ended.output
    assert "stretch" in ended.output and "hold" in ended.output
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["train"]["epochs"] == 1

    more = ["train.epochs=2", "optim.schedule_on_extend=hold"]
    ended = adafilter("resume", str(finished), *more, folder=folder)
    assert ended.code == 0, ended.output
    assert f"going on from step {STEPS} " in ended.output
    assert "the schedule is 1 epochs long, and its last rate is held" in ended.output
    train = rows(finished, "train")
    assert [row["step"] for row in train] == list(range(1, 2 * STEPS + 1))
    assert {row["lr"] for row in train[STEPS:]} == {train[STEPS - 1]["lr"]}
    validations = [row["step"] for row in rows(finished, "evaluation") if row["split"] == "val"]
    assert validations == [STEPS, 2 * STEPS]
    (changed,) = [e for e in read_lines(finished / "events.jsonl") if e["kind"] == "changed"]
    assert changed["changes"]["train.epochs"] == [1, 2]
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"

    # The words that began it are shorter now, and the run stays what it is.
    ended = adafilter("train", *words, f"run_dir={finished}", "train.epochs=1", folder=folder)
    assert ended.code == 2, ended.output
    assert "train.epochs: 2 -> 1" in ended.output and "adafilter resume" in ended.output
    ended = adafilter("resume", str(finished), folder=folder)
    assert ended.code == 0 and "already finished" in ended.output


def test_batches_of_another_size_go_on_in_the_same_epoch(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = [f"run_dir={run}", "train.epochs=1", "checkpoint.every=10", "evaluate.gates=false"]
    ended = adafilter("train", *words, *first, folder=tmp_path)
    assert ended.code == 0, ended.output
    more = ["train.epochs=2", "optim.schedule_on_extend=stretch", "train.global_batch=8"]
    ended = adafilter("resume", str(run), *more, folder=tmp_path)
    assert ended.code == 2 and "train.global_batch: 16 -> 8" in ended.output, ended.output
    ended = adafilter(
        "resume", str(run), *more, "--allow-mismatch", "train.global_batch", folder=tmp_path
    )
    assert ended.code == 0, ended.output
    assert "allowed by --allow-mismatch" in ended.output
    # 430 pictures: an epoch of 53 batches of 8 after one of 26 batches of 16.
    steps = [row["step"] for row in rows(run, "train")]
    assert steps == [*range(1, STEPS + 1), *range(54, 107)]
