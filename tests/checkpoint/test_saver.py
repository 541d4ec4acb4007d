"""Saving beside the training: what the writing process survives, and what survives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adafilter_dist.checkpoint.saver import Failed, Saved, Saver
from adafilter_dist.checkpoint.store import Checkpoints, Position
from adafilter_dist.checkpoint.writer import IGNORED, command
from adafilter_dist.engine import FullState
from adafilter_dist.run.ownership import claim
from tests.checkpoint.saves import Attempt, attempt, newest, state


def test_every_type_and_layout_is_read_back_by_the_library(tmp_path: Path) -> None:
    model = {
        "f64": torch.rand(3, dtype=torch.float64),
        "f16": torch.rand(5).half(),
        "bf16": torch.rand(7).bfloat16(),
        "u8": torch.arange(3, dtype=torch.uint8),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(-3),
        "empty": torch.zeros(0, 4),
        "slice": torch.rand(8, 6)[::2, 1:4],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        'name with \u00e9 and "quotes"': torch.rand(1),
    }
    with attempt(tmp_path) as one:
        one.saver.save(FullState(model, {}), Position(step=1), {})
        result = one.saver.result(wait=True)
    assert isinstance(result, Saved)
    path = tmp_path / "checkpoints" / result.folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(model)
        for name, tensor in model.items():
            read = file.get_tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read, tensor), name


def test_what_is_saved_is_the_state_at_the_call_whatever_training_does_next(
    tmp_path: Path,
) -> None:
    with attempt(tmp_path) as one:
        held = state(1.0)
        one.saver.save(held, Position(step=1), {})
        held.model["conv.weight"].fill_(99.0)
        assert isinstance(one.saver.result(wait=True), Saved)
    loaded = Checkpoints(tmp_path).newest(print)
    assert loaded is not None and loaded.state.model["conv.weight"].eq(1.0).all()


def test_a_second_save_waits_for_the_first_and_both_are_told(tmp_path: Path) -> None:
    with attempt(tmp_path) as one:
        for step in (1, 2, 3):
            one.saver.save(state(float(step)), Position(step=step), {})
        results = [one.saver.result(wait=True) for _ in range(4)]
    assert [r.step if r else None for r in results] == [1, 2, 3, None]
    assert newest(tmp_path)[0] == 3


def test_a_position_that_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    with attempt(tmp_path) as one:
        one.save(1)
        assert one.try_to_save(1) is None


def writer_pid(one: Attempt) -> int:
    process = one.saver._process
    assert process is not None
    return process.pid


def test_the_signals_for_training_leave_the_writer_alone_from_its_first_moment(
    tmp_path: Path,
) -> None:
    one = Attempt(tmp_path)
    try:
        first = writer_pid(one)
        for number in (*IGNORED, signal.SIGINT, signal.SIGTERM):
            os.kill(first, number)  # it has hardly begun to import
        one.save(1)
        for number in IGNORED:
            os.kill(writer_pid(one), number)
        one.save(2)
        assert writer_pid(one) == first  # and not another that was started in its place
    finally:
        one.end()
    assert newest(tmp_path)[0] == 2


def test_a_killed_writer_is_told_of_and_the_next_save_starts_another(tmp_path: Path) -> None:
    with attempt(tmp_path) as one:
        one.save(1)
        killed = writer_pid(one)
        os.kill(killed, signal.SIGSTOP)  # so that the save is surely under way
        one.saver.save(state(2.0), Position(step=2), {})
        os.kill(killed, signal.SIGKILL)
        result = one.saver.result(wait=True)
        assert isinstance(result, Failed) and "SIGKILL" in result.error
        assert newest(tmp_path)[0] == 1
        one.save(3)
        os.kill(writer_pid(one), signal.SIGKILL)  # between two saves
        os.waitid(os.P_PID, writer_pid(one), os.WEXITED | os.WNOWAIT)
        one.save(4)
    assert newest(tmp_path)[0] == 4


_PARENT = """
import os, signal, sys
from pathlib import Path
from tests.checkpoint.saves import Attempt
one = Attempt(Path(sys.argv[1]))
one.save(1)
print(one.saver._process.pid, flush=True)
signal.pause()
"""


@pytest.mark.slow
def test_the_writer_dies_with_its_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        descriptor = os.pidfd_open(pid)
        os.kill(pid, signal.SIGSTOP)  # it cannot notice that nobody asks any more
    finally:
        process.kill()
        process.communicate(timeout=150)
    import select

    assert select.select([descriptor], [], [], 30)[0], "the writer outlives its parent"
    os.close(descriptor)


def test_the_writer_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; import adafilter_dist.checkpoint.writer; print('torch' in sys.modules)"
    done = subprocess.run(
        [command()[0], "-c", code], capture_output=True, text=True, timeout=150, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_failed_save_leaves_the_one_before_and_nothing_behind(tmp_path: Path) -> None:
    with attempt(tmp_path) as one:
        one.save(1)
        # Whatever the reason: here a name that is in the way of the temporary folder's files.
        blocked = tmp_path / "checkpoints" / ".step-000000002.1.tmp"
        blocked.symlink_to(tmp_path / "nowhere" / "else")
        result = one.try_to_save(2)
        assert isinstance(result, Failed) and not result.lost
        blocked.unlink()
        one.save(3)
    assert newest(tmp_path)[0] == 3
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_state_that_json_cannot_say_is_an_error_at_once(tmp_path: Path) -> None:
    with attempt(tmp_path) as one, pytest.raises(ValueError, match="JSON"):
        one.saver.save(state(1.0), Position(step=1, best_metric=float("nan")), {})


@pytest.mark.usefixtures("strace")
def test_files_beside_are_synced_before_the_checkpoint_is_published(tmp_path: Path) -> None:
    """Seen from outside: the writer's system calls in their order."""
    trace = tmp_path / "trace"
    rows = tmp_path / "metrics.jsonl"
    rows.write_text(json.dumps({"step": 1}) + "\n")
    ownership = claim(tmp_path)
    wanted = "fsync,rename,renameat,renameat2"
    from adafilter_dist.checkpoint import writer

    before = writer.command
    writer.command = lambda: ["strace", "-y", "-o", str(trace), "-e", f"trace={wanted}", *before()]
    try:
        saver = Saver(ownership)
    finally:
        writer.command = before
    try:
        saver.save(state(1.0), Position(step=1), {}, [rows, tmp_path / "not-there.jsonl"])
        assert isinstance(saver.result(wait=True), Saved)
    finally:
        saver.close()
    calls = trace.read_text().splitlines()
    synced = [n for n, call in enumerate(calls) if "fsync" in call and "metrics.jsonl" in call]
    published = [n for n, call in enumerate(calls) if call.startswith("rename") and "step-" in call]
    assert len(synced) == 1 and synced[0] < published[-1]
