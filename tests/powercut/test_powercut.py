"""Losing power at any moment: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adafilter_dist.checkpoint.store import Checkpoints
from adafilter_dist.run.ownership import owners
from adafilter_dist.system.json_lines import read_lines
from adafilter_dist.system.sealed_files import DamagedError
from tests.powercut.disk import write
from tests.powercut.replay import Recording, Replay, marked, record
from tests.powercut.saving import attempt, run_in, state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("strace")]


@dataclass(frozen=True)
class Run:
    """What a fresh process finds in a run folder."""

    newest: int | str | None  # a step whose state is right to the bit, nothing, or what is wrong
    whole: int  # checkpoints that a run could go on from
    both_copies: bool  # of the frozen weights
    rows: tuple[int, ...]
    attempts: tuple[tuple[int, bool, str], ...]  # number, owner known, how it ended
    prepared: bool  # the folder that saves go to is there


def look_at_run(folder: Path) -> Run:
    run = run_in(folder)
    checkpoints = Checkpoints(run)
    newest, both_copies = _newest(checkpoints), checkpoints.frozen_entry is not None
    return Run(
        newest=newest,
        whole=sum(_is_whole(checkpoints, folder) for folder in checkpoints.steps()),
        both_copies=both_copies,
        rows=tuple(row["step"] for row in read_lines(run / "metrics.jsonl")),
        attempts=tuple(
            (owner.attempt, bool(owner.machine), _ended(run, owner.attempt))
            for owner in owners(run)
        ),
        prepared=checkpoints.folder.is_dir(),
    )


def _newest(checkpoints: Checkpoints) -> int | str | None:
    try:
        loaded = checkpoints.newest(lambda line: None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if loaded is None:
        return None
    step = loaded.position.step
    wanted, found = state(step), loaded.state
    tensors = dict(found.tensors())
    same = found.scaler == wanted.scaler and tensors.keys() == dict(wanted.tensors()).keys()
    same = same and all(torch.equal(tensors[name], tensor) for name, tensor in wanted.tensors())
    return step if same else f"step {step} with other tensors"


_SEEN: dict[tuple[bytes | str, ...], bool] = {}


def _is_whole(checkpoints: Checkpoints, folder: Path) -> bool:
    files = [*sorted(folder.iterdir()), *sorted(checkpoints.folder.glob("frozen.*"))]
    key = tuple(part for path in files for part in (path.name, path.read_bytes()))
    if key not in _SEEN:  # most states differ elsewhere, and reading tensors takes its time
        try:
            checkpoints.load(folder)
            _SEEN[key] = True
        except DamagedError:
            _SEEN[key] = False
    return _SEEN[key]


def _ended(run: Path, attempt: int) -> str:
    try:
        record = (run / "attempts" / str(attempt) / "ended.json").read_text()
        return str(json.loads(record)["state"])
    except FileNotFoundError:
        return ""
    except ValueError:
        return "half a record"


def judge_run(run: Run, said: Sequence[str]) -> str | None:
    saved: int | None = None
    whole = claimed = ended = 0
    fresh = False
    for line in said:
        if line.startswith('{"step": '):
            saved, fresh, whole = json.loads(line)["step"], True, min(whole + 1, 2)
        elif line.startswith("back to "):
            saved, fresh, whole = int(line.split()[-1]), False, 1
        elif line.startswith("claimed "):
            claimed = int(line.split()[-1])
        elif line.startswith("ended "):
            ended = int(line.split()[-1])
    if isinstance(run.newest, str):
        return f"loading fails: {run.newest}"
    if saved is not None and (run.newest is None or run.newest < saved):
        return f"step {saved} was acknowledged, {run.newest} is there"
    if run.whole < whole:
        return f"{whole} checkpoints were kept, {run.whole} are there"
    if fresh and not run.both_copies:
        return f"step {saved} was acknowledged, one copy of the frozen weights is not there"
    if run.rows != tuple(range(1, len(run.rows) + 1)):
        return f"rows of metrics {run.rows}"
    if run.newest is not None and len(run.rows) < run.newest:
        return f"{len(run.rows)} rows of metrics beside the checkpoint of step {run.newest}"
    if not all(known for _, known, _ in run.attempts):
        return f"an owner is not known any more: {run.attempts}"
    if claimed > max((number for number, *_ in run.attempts), default=0):
        return f"attempt {claimed} was claimed and is gone"
    if claimed and not run.prepared:
        return "the run was claimed and has no folder for checkpoints"
    if any(how != "stopped" for number, _, how in run.attempts if number <= ended or how):
        return f"attempt {ended} said that it stopped: {run.attempts}"
    return None


@pytest.fixture(scope="module")
def saves(strace: None, tmp_path_factory: pytest.TempPathFactory) -> Replay[Run]:
    return recorded("tests.powercut.saving", tmp_path_factory, look_at_run, judge_run)


def recorded(
    module: str,
    tmp_path_factory: pytest.TempPathFactory,
    look: Callable[[Path], Any],
    judge: Callable[[Any, Sequence[str]], str | None],
) -> Replay[Any]:
    folder = tmp_path_factory.mktemp(module.rpartition(".")[2])
    root = folder / "run"
    root.mkdir()
    return Replay(record(marked(module), root, folder / "strace.log"), look, judge)


def test_no_save_is_lost_or_half(saves: Replay[Run]) -> None:
    never_violated(saves)


def test_from_any_state_the_run_goes_on(saves: Replay[Run], tmp_path: Path) -> None:
    trees = [tree for _, _, tree in saves.states()]
    for number, tree in enumerate(random.Random(0).sample(trees, 12)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(tree, folder)
        before = look_at_run(folder)
        assert not isinstance(before.newest, str)
        attempt(run_in(folder), (before.newest or 0) + 1)
        after = look_at_run(folder)
        assert after.newest == (before.newest or 0) + 1, before
        assert after.both_copies
        assert not list(run_in(folder).glob("checkpoints/.*"))  # what the cut left half done
        assert after.rows == tuple(range(1, after.newest + 1))


def test_each_sync_of_a_save_is_needed(saves: Replay[Run]) -> None:
    assert superfluous(saves) == []


def never_violated(replay: Replay[Any]) -> None:
    first = next(replay.violations(), None)
    assert first is None, f"{first.said}: {replay.recording.where(first.at)}: {set(first.tree)}"
    print(f"{len(replay.known)} states after {len(replay.recording.operations)} operations")


def superfluous(replay: Replay[Any]) -> list[str]:
    """Lines of the package whose sync could be left out and no state would show it."""

    def shows(places: frozenset[int]) -> bool:
        # Most show as soon as the program says that it is done: looked at first, for speed.
        quick = replay.violations(places, when_said=True)
        return any(next(search, None) for search in (quick, replay.violations(places)))

    recording: Recording = replay.recording
    return [lines for lines, places in recording.syncs().items() if not shows(places)]


@dataclass(frozen=True)
class Small:
    """What a fresh process finds in the small files."""

    status: int | None
    events: tuple[int, ...]


def look_at_small_files(run: Path) -> Small | str:
    try:
        path = run / "status.json"
        return Small(
            status=json.loads(path.read_text())["step"] if path.exists() else None,
            events=tuple(row["step"] for row in read_lines(run / "events.jsonl")),
        )
    except (ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def judge_small_files(small: Small | str, said: Sequence[str]) -> str | None:
    if isinstance(small, str):
        return small
    last = {"status": 0, "event": 0}
    for line in said:
        if line.startswith(("status ", "event ")):
            kind, number = line.split()
            last[kind] = int(number)
    if (small.status or 0) < last["status"]:
        return f"status {last['status']} was written, {small.status} is there"
    if small.events != tuple(range(1, len(small.events) + 1)):
        return f"events {small.events}"
    if len(small.events) < last["event"]:
        return f"event {last['event']} was written, {small.events} are there"
    return None


@pytest.fixture(scope="module")
def small_files(strace: None, tmp_path_factory: pytest.TempPathFactory) -> Replay[Small | str]:
    return recorded(
        "tests.powercut.appending", tmp_path_factory, look_at_small_files, judge_small_files
    )


def test_no_status_and_no_row_is_lost_or_half(small_files: Replay[Small | str]) -> None:
    never_violated(small_files)


def test_each_sync_of_the_small_files_is_needed(small_files: Replay[Small | str]) -> None:
    assert superfluous(small_files) == []
