"""What happens around a run: full, read-only and vanished disks, other processes, other ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.metrics import read_lines
from adafilter_dist.run.ownership import newest_owner
from tests.distributed.conftest import run_folder
from tests.distributed.launch import adafilter, start
from tests.distributed.watching import ranks, watched
from tests.kills.attempts import Attempt, ForkServer
from tests.kills.same import differences
from tests.kills.tracing import attach

pytestmark = pytest.mark.distributed
SHORT = ["checkpoint.every=3", "train.epochs=1", "evaluate.gates=false"]
BOUND = 120.0
"""Seconds within which ranks must have ended after one of them did, on a busy machine."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = adafilter("train", *words, *SHORT, folder=folder)
    assert ended.code == 0, ended.output
    return run_folder(folder)


def await_event(run: Path, kind: str, number: int = 1) -> None:
    """Return once ``number`` events of a kind are in the run folder; fail after four minutes."""
    until = time.monotonic() + 240
    while sum(event["kind"] == kind for event in read_lines(run / "events.jsonl")) < number:
        assert time.monotonic() < until, read_lines(run / "events.jsonl")
        time.sleep(0.02)


def status(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "status.json").read_text())
    return read


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@needs_root
def test_a_full_disk_is_told_of_and_nothing_is_lost_once_there_is_room(
    words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "200m") as disk:
        run = disk / "run"
        boards = ["log.to=[tensorboard]"]
        process = start(["train", *words, *SHORT, *boards, f"run_dir={run}"], folder=tmp_path)
        with watched(process) as training:
            await_event(run, "saved")
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(b"\0" * 4096):
                        pass
                except OSError:
                    pass
            training.wait_for("not saved: ")
            (line,) = [line for line in training.output.splitlines() if "not saved: " in line]
            assert f"{run / 'checkpoints'}: no space for a checkpoint: " in line
            assert "MiB are needed, " in line
            assert line.endswith("MiB are free; training goes on")
            ballast.unlink()
            assert training.end().code == 0, training.output
        assert "Traceback" not in training.output
        kinds = {event["kind"] for event in read_lines(run / "events.jsonl")}
        assert {"save_failed", "saved", "finished"} <= kinds
        assert differences(run, undisturbed) == []


@needs_root
def test_a_run_folder_that_cannot_be_written_is_refused(words: list[str], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        ended = adafilter("train", *words, f"run_dir={disk / 'run'}", folder=tmp_path)
    assert ended.code == 2, ended.output
    assert "Read-only file system" in ended.output and "run_dir=PATH" in ended.output
    assert "Traceback" not in ended.output


def test_a_run_folder_that_vanishes_for_a_while(
    words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(["train", *words, *SHORT, f"run_dir={run}"], folder=tmp_path)
    with watched(process) as training:
        await_event(run, "saved", 2)
        run.rename(tmp_path / "away")
        training.wait_for("not saved: ")
        assert not run.exists()  # nothing is written beside a mount point that is gone
        (tmp_path / "away").rename(run)
        assert training.end().code == 0, training.output
    assert differences(run, undisturbed) == []


@contextmanager
def without_locks(server: ForkServer, folder: Path, *words: str) -> Iterator[Attempt]:
    """A command whose every flock() succeeds and does nothing, as some file systems have it."""
    attempt = server.fork(words, folder=folder, output=folder / words[0], stopped=True)
    strace = ["strace", "-f", "-o", "/dev/null", "-e", "trace=flock"]
    tracer = attach(attempt.pid, [*strace, "-e", "inject=flock:retval=0"])
    os.kill(attempt.pid, signal.SIGCONT)
    try:
        yield attempt
    finally:
        if attempt.code is None:
            attempt.kill()
        tracer.communicate(timeout=60)


@pytest.mark.usefixtures("strace")
def test_a_second_process_on_the_same_run_is_refused_even_where_locks_do_nothing(
    server: ForkServer, words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train = ["train", *words, *SHORT, f"run_dir={run}"]
    with without_locks(server, tmp_path, *train) as training:
        await_event(run, "saved")
        owner = newest_owner(run)
        assert owner is not None and owner.pid == training.pid
        # Held meanwhile: on a busy machine it would be finished before the other one has begun.
        os.kill(owner.pid, signal.SIGSTOP)
        with without_locks(server, tmp_path, "resume", str(run)) as another:
            code, printed = another.wait(), another.printed()
        os.kill(owner.pid, signal.SIGCONT)
        assert code == 2, printed
        assert f"in use by process {owner.pid} on" in printed
        assert training.wait() == 0, training.printed()
    assert status(run)["attempt"] == 1
    assert differences(run, undisturbed) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_one_rank_killed_ends_the_other_with_a_message(
    words: list[str], tmp_path: Path, victim: int
) -> None:
    run = tmp_path / "run"
    with ranks(["train", *words, *SHORT, f"run_dir={run}"], 2, tmp_path) as both:
        await_event(run, "saved")
        both[victim].process.kill()
        ended = both[1 - victim].end(BOUND)
    assert ended.code == 1, ended.output
    assert f"rank {1 - victim} (cpu) lost another rank" in ended.output
    assert f"adafilter resume {run}" in ended.output
    assert "Traceback" not in ended.output
    state = status(run)["state"]
    assert state == ("running" if victim == 0 else "failed")
    # Whoever comes next sees that nobody has the run any more, and goes on.
    again = adafilter("resume", str(run), folder=tmp_path)
    assert again.code == 0, again.output
    assert "going on from step" in again.output


def test_a_rank_that_nobody_watches_is_given_up_after_the_time_out(
    words: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = [*SHORT, f"run_dir={run}", "engine.timeout=15s", "engine.hang=null"]
    with ranks(["train", *words, *more], 2, tmp_path) as both:
        await_event(run, "saved")
        both[1].process.send_signal(signal.SIGSTOP)
        ended = both[0].end(BOUND)
    assert ended.code == 1, ended.output
    assert "rank 0 (cpu) lost another rank" in ended.output
    assert "engine.timeout=15s" in ended.output
    assert status(run)["state"] == "failed"


def test_a_rank_that_is_only_slow_is_waited_for(words: list[str], tmp_path: Path) -> None:
    run, quiet = tmp_path / "run", tmp_path / "quiet"
    with ranks(["train", *words, *SHORT, f"run_dir={run}"], 2, tmp_path) as both:
        await_event(run, "saved")
        for rank in both:
            rank.process.send_signal(signal.SIGSTOP)
            time.sleep(3)  # longer than the others' steps and signs of life
            rank.process.send_signal(signal.SIGCONT)
        for rank in both:
            assert rank.end().code == 0, rank.output
    with ranks(["train", *words, *SHORT, f"run_dir={quiet}"], 2, tmp_path) as both:
        for rank in both:
            assert rank.end().code == 0, rank.output
    assert differences(run, quiet) == []


def test_bad_input_met_by_the_first_rank_alone_ends_all(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = adafilter("train", *words, "train.epochs=1", f"run_dir={run}", folder=tmp_path)
    assert ended.code == 0, ended.output
    with ranks(["train", *words, "optim.lr=0.5", f"run_dir={run}"], 2, tmp_path) as both:
        first, second = both[0].end(BOUND), both[1].end(BOUND)
    assert (first.code, second.code) == (2, 2), first.output + second.output
    assert "optim.lr: 0.005 -> 0.5" in first.output and "--allow-mismatch" in first.output
    assert "error" not in second.output  # said once
