"""Rows, events, boards and console of a run, through crashes and resumes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from adafilter_dist.metrics import JsonLines, Metrics, append, cut_after, read_lines
from adafilter_dist.metrics.progress import ConsoleProgress
from adafilter_dist.recipe import Recipe


def recipe(**log: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "data": {"name": "fashion_mnist"}, "train": {"epochs": 2}, "log": log}
    )


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def metrics(folder: Path, console: Console | None = None, **given: Any) -> Metrics:
    settings = {"rank": 0, "total_steps": 10, "step": 0, **given}
    log = settings.pop("log", {"to": []})
    return Metrics(folder, recipe(**log), console or plain_console(), **settings)


def test_rows_are_strict_json_with_kind_and_step(tmp_path: Path) -> None:
    writer = metrics(tmp_path)
    writer.train(1, 0, {"loss": float("nan"), "accuracy": torch.tensor(0.5), "lr": [1e-3]})
    writer.evaluation(1, 0, "val", {"top1": 0.25, "loss": float("inf")})
    writer.close()

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    train, val = (json.loads(line, parse_constant=refuse) for line in lines)
    assert (train["kind"], train["step"], train["epoch"]) == ("train", 1, 0)
    assert (train["loss"], train["accuracy"], train["lr"]) == (None, 0.5, [1e-3])
    assert (val["kind"], val["split"], val["top1"], val["loss"]) == (
        "evaluation",
        "val",
        0.25,
        None,
    )


@pytest.mark.parametrize("torn", [b'{"kind":"train","step":3', b'{"step":3}', b"\0\0\0\0", b""])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n' + torn)
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    file = JsonLines(path)
    file.write({"step": 3})
    file.close()
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n{"step":3}\n'


def test_every_cut_of_a_file_can_be_read_and_gone_on_with(tmp_path: Path) -> None:
    whole = b'{"step":1,"loss":1.25}\n{"step":2,"loss":0.5}\n'
    for length in range(len(whole) + 1):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(whole[:length])
        append(path, {"step": 9})
        *rows, last = read_lines(path)
        assert last == {"step": 9}
        assert rows == [{"step": 1, "loss": 1.25}, {"step": 2, "loss": 0.5}][: len(rows)]
        assert len(rows) == whole[:length].count(b"\n")


def test_a_resume_cuts_rows_past_the_checkpoint_but_no_event(tmp_path: Path) -> None:
    first = metrics(tmp_path)
    first.event("start", world_size=2)
    for step in range(1, 6):
        first.train(step, 0, {"loss": 1.0})
    first.close()
    first.event("stopped", world_size=2)
    second = metrics(tmp_path, step=3)
    second.event("start", world_size=1)
    second.train(4, 0, {"loss": 2.0})
    second.close()
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["world_size"] for event in events] == [2, 2, 1]
    assert events[0]["time"] <= events[1]["time"] and events[0]["time"].endswith("+00:00")


def test_the_cut_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step":1}\n{"step":2}\n'
    path.write_bytes(content)

    def no_space(*_: object) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="no space"):
            cut_after(path, 1)
    assert path.read_bytes() == content
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]
    cut_after(path, 1)
    assert path.read_bytes() == b'{"step":1}\n'


def test_only_rank_0_writes(tmp_path: Path) -> None:
    other = metrics(tmp_path / "run", rank=1)
    other.train(1, 0, {"loss": 1.0})
    other.evaluation(1, 0, "val", {"top1": 0.5})
    other.event("start")
    other.say("hello")
    other.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_hides_what_lay_past_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = {"to": ["tensorboard"]}
    first = metrics(tmp_path, log=log)
    for step in range(1, 6):
        first.train(step, 0, {"loss": 1.0, "lr": float("nan")})
    first.close()
    second = metrics(tmp_path, log=log, step=3)
    second.train(4, 0, {"loss": 2.0})
    second.evaluation(4, 0, "val", {"top1": 0.5})
    second.close()
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in seen.Scalars("train/loss")] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
    ]
    assert [e.step for e in seen.Scalars("val/top1")] == [4]


@pytest.mark.parametrize(("log", "told"), [({"to": ["tensorboard"]}, True), ({}, False)])
def test_a_missing_board_is_skipped_and_told_of_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: dict[str, Any], told: bool
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    console = plain_console()
    writer = metrics(tmp_path, console, log=log)
    writer.train(1, 0, {"loss": 1.0})
    writer.close()
    assert ("pip install 'adafilter-dist[tensorboard]'" in text(console)) is told
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1


class Clock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_30_seconds_and_after_an_evaluation() -> None:
    console, clock = plain_console(), Clock()
    progress = ConsoleProgress(console, epochs=2, total_steps=100, clock=clock)
    row = {"loss": 1.5, "accuracy": 0.25, "images_per_second": 1234.0, "data_wait": 0.07}
    for step in range(1, 51):
        clock.now += 2.0
        progress.train(step, step // 51, row)
    progress.evaluation(50, 0, "val", {"loss": 1.0, "top1": 0.5, "top5": None})
    progress.close()
    lines = text(console).splitlines()
    assert len(lines) == 5
    assert lines[0] == (
        "epoch 1/2  step 1/100  loss 1.500  accuracy 25.0%  1,234 images/s  data wait 7%  ETA 3:18"
    )
    assert [line.split()[3] for line in lines[1:4]] == ["16/100", "31/100", "46/100"]
    assert lines[4] == "epoch 1/2  step 50  val: loss 1.000  top-1 50.0%"


def test_lines_stay_in_order_where_figures_come_later() -> None:
    console, clock = plain_console(), Clock()
    progress = ConsoleProgress(console, epochs=2, total_steps=100, step=4, clock=clock)
    for step in (5, 6):
        clock.now += 20.0  # the first steps of an attempt are slow
        progress.advance(step, 0)
    progress.train(5, 0, {"loss": 1.5})
    lines = text(console).splitlines()
    assert [line.split()[3] for line in lines] == ["6/100", "6/100"]
    assert "loss" not in lines[0] and "loss 1.500" in lines[1]


def test_a_terminal_gets_a_live_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    progress = ConsoleProgress(console, epochs=2, total_steps=10, clock=Clock())
    progress.train(3, 0, {"loss": 1.5, "accuracy": 0.25, "images_per_second": 99.0})
    progress.evaluation(3, 0, "val", {"top1": 0.5})
    progress.close()
    shown = text(console)
    assert "step 3/10" in shown and "loss 1.500" in shown and "99 images/s" in shown
    assert "val: top-1 50.0%" in shown


def test_an_evaluation_is_a_second_bar_while_it_lasts() -> None:
    console, clock = Console(file=io.StringIO(), force_terminal=True, width=160), Clock()
    progress = ConsoleProgress(console, epochs=2, total_steps=10, clock=clock)
    with progress.counting("evaluating", 2500) as done:
        clock.now += 2.0
        done(500)
    assert "500/2,500 pictures, 250/s, 0:08 left" in text(console)
    progress.close()
    last = text(console).rpartition("epoch 1/2")[2]
    assert last and "evaluating" not in last


def test_elsewhere_a_long_evaluation_says_so_every_30_seconds(tmp_path: Path) -> None:
    console, clock = plain_console(), Clock()
    log = tmp_path / "log.txt"
    progress = ConsoleProgress(console, epochs=2, total_steps=10, clock=clock, log=log)
    with progress.counting("evaluating", 2500) as done:
        for seen in range(500, 2501, 500):
            clock.now += 14.0
            done(seen)
    progress.close()
    line = "evaluating: 1,500 of 2,500 pictures, 36/s, 0:28 left"
    assert text(console).splitlines() == [line]
    assert log.read_text().endswith(f" {line}\n")


@pytest.mark.slow
def test_weights_and_biases_offline_and_the_same_run_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for step in (0, 3):
        writer = metrics(tmp_path, log={"to": ["wandb"]}, step=step)
        writer.train(step + 1, 0, {"loss": 1.0})
        writer.close()
    run_id = (tmp_path / "wandb_id").read_text().strip()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert runs and all(run.name.endswith(f"-{run_id}") for run in runs)
    assert all(list(run.glob(f"run-{run_id}.wandb")) for run in runs)
