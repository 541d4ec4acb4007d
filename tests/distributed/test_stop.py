"""A signal to any rank stops all of them: soon, saved, and no step is done twice (E3)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.training.preemption import DELAY
from tests.distributed.conftest import run_folder
from tests.distributed.launch import Ended, free_port, kill_tree, rank_environment, start, wait
from tests.distributed.test_world_sizes import rows, tensors
from tests.kills.attempts import ForkServer

pytestmark = pytest.mark.distributed
FAST = ("train.epochs=1", "checkpoint.every=100")
ASKED = 5  # the step, from 0, during which the signal comes


@pytest.fixture(scope="module")
def undisturbed(
    server: ForkServer, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (ended,) = train(server, words, folder, 1)
    assert ended.code == 0, ended.output
    return run_folder(folder)


class Watcher(threading.Thread):
    """Reads status.json of the run in a folder all the time; keeps what is new in it.

    A thousand times a second: without a pause it would take a core from the ranks.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.seen: list[dict[str, Any]] = []
        self.torn: list[bytes] = []
        self._folder = folder
        self._enough = threading.Event()

    def run(self) -> None:
        last = b""
        while not self._enough.wait(5e-4):
            for file in (self._folder / "runs").glob("*/*/status.json"):
                content = file.read_bytes()
                if content != last:
                    last = content
                    self._keep(content)

    def _keep(self, content: bytes) -> None:
        try:
            self.seen.append(json.loads(content))
        except ValueError:
            self.torn.append(content)

    def close(self) -> None:
        self._enough.set()
        self.join()


@contextmanager
def watched(folder: Path) -> Iterator[Watcher]:
    """While the block runs, status.json is read; it must always have been whole and in order."""
    watcher = Watcher(folder)
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.close()
    assert watcher.torn == []
    attempts = [status["attempt"] for status in watcher.seen]
    assert attempts == sorted(attempts)
    for attempt in set(attempts):
        own = [status for status in watcher.seen if status["attempt"] == attempt]
        states = [status["state"] for status in own]
        assert set(states[:-1]) <= {"running"} and states[-1] in ("stopped", "finished"), states
        done = [status["step"] for status in own if status.get("phase") != "starting"]
        assert done == sorted(done), done


def train(
    server: ForkServer, words: list[str], folder: Path, ranks: int, *, signals: str = ""
) -> list[Ended]:
    """One attempt of so many ranks that were started by hand; how each of them ended."""
    port = free_port()
    attempts = []
    for rank in range(ranks):
        place = rank_environment(rank, ranks, port) if ranks > 1 else {}
        attempts.append(
            server.fork(
                ["train", *words, *FAST],
                folder=folder,
                environment={**place, **recorded(folder, signals)},
                output=folder / f"printed.{rank}",
                before=["tests.distributed.recorder", "install"],
            )
        )
    return [Ended(attempt.wait(), attempt.printed()) for attempt in attempts]


def recorded(folder: Path, signals: str) -> dict[str, str]:
    """What the recorder wants to find in the environment."""
    record = folder / "record"
    record.mkdir(parents=True, exist_ok=True)
    return {"RECORD": str(record), "SIGNALS": signals}


def steps_of(folder: Path) -> list[tuple[int, int]]:
    """(step, micro-batch) of all that was computed, in every attempt."""
    files = (folder / "record").glob("rank-*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(line["step"], line["micro_batch"]) for line in lines]


@pytest.mark.parametrize(
    ("ranks", "torchrun", "signals", "reason"),
    [
        (1, False, f"0:{ASKED}:TERM", "SIGTERM"),
        (2, True, f"1:{ASKED}:TERM", "asked on another rank"),
        # What the line above shows under torchrun.
        pytest.param(
            *(2, False, f"1:{ASKED}:TERM", "asked on another rank"), marks=pytest.mark.long
        ),
        # As clusters send them: a warning, then the end.
        (2, False, f"0:{ASKED}:USR2 0:{ASKED + 1}:TERM", "SIGUSR2"),
        (2, False, f"1:{ASKED}:USR2 1:{ASKED + 1}:TERM 0:{ASKED + 2}:TERM", "SIGTERM"),
    ],
)
def test_all_ranks_stop_and_go_on_without_repeating_a_step(
    server: ForkServer,
    words: list[str],
    undisturbed: Path,
    tmp_path: Path,
    ranks: int,
    torchrun: bool,
    signals: str,
    reason: str,
) -> None:
    with watched(tmp_path) as watcher:
        if torchrun:
            process = start(
                ["train", *words, *FAST],
                world_size=ranks,
                folder=tmp_path,
                module="tests.distributed.recorder",
                environment=recorded(tmp_path, signals),
            )
            ended = [wait(process, 300)]
        else:
            ended = train(server, words, tmp_path, ranks, signals=signals)
    # Under torchrun a clean stop is no failure: its agent would restart or hide anything else.
    expected = [0] if torchrun else [75] * ranks
    assert [one.code for one in ended] == expected, ended[0].output
    run = run_folder(tmp_path)
    status = json.loads((run / "status.json").read_text())
    # The step that was under way, the one that carries the flag, and the delay.
    stopped_at = ASKED + 2 + DELAY
    assert (status["state"], status["reason"]) == ("stopped", reason)
    assert status["step"] == stopped_at == rows(run, "train")[-1]["step"]
    assert [s["step"] for s in watcher.seen if s["state"] == "stopped"] == [stopped_at]
    assert f"adafilter resume {run.relative_to(tmp_path)}" in ended[0].output
    if reason.startswith("SIG"):  # said at once, by the first rank
        before, _, _ = ended[0].output.partition("stopped by")
        assert f"{reason}: stopping after a few steps, once saved" in before
    assert {step for step, _ in steps_of(tmp_path)} == set(range(stopped_at))

    with watched(tmp_path) as watcher:
        ended = train(server, words, tmp_path, ranks)
    assert [one.code for one in ended] == [0] * ranks, ended[0].output
    assert f"going on from step {stopped_at} " in ended[0].output
    assert (watcher.seen[-1]["state"], watcher.seen[-1]["attempt"]) == ("finished", 2)
    total = rows(undisturbed, "train")[-1]["step"]
    everything = [(step, micro_batch) for step in range(total) for micro_batch in range(4)]
    assert sorted(steps_of(tmp_path)) == everything  # each once
    wanted, found = tensors(undisturbed), tensors(run)
    for name, tensor in wanted.items():
        distance = (found[name].double() - tensor.double()).abs().max().item()
        assert distance <= (1e-9 if ranks > 1 else 0.0), (name, distance)


def test_a_run_whose_output_nobody_reads_any_more_is_saved_and_stops(
    words: list[str], tmp_path: Path
) -> None:
    process = start(["train", *words, *FAST, "log.every=1"], folder=tmp_path)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()  # as `head -1` does
        process.stdout.close()
        code = process.wait(300)
    finally:
        kill_tree(process.pid)
    assert "steps of" in first
    run = run_folder(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (code, status["state"], status["reason"]) == (75, "stopped", "closed output")
    assert (run / "checkpoints" / f"step-{status['step']:09d}").is_dir()
    assert "stopped by closed output" in (run / "log.txt").read_text()
