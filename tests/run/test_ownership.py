"""One attempt at a time has a run: claims, refusals, the dead, and zombies on other machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.run.ownership import (
    LostRunError,
    Owner,
    claim,
    is_alive,
    newest_owner,
    owners,
    this_process,
)
from tests.checkpoint.saves import newest

_HOLDS = """
import sys, time
from pathlib import Path
from adafilter_dist.run.ownership import claim
from adafilter_dist.errors import UserError
try:
    ownership = claim(Path(sys.argv[1]), lease=float(sys.argv[2]))
except UserError as error:
    print("refused", error, flush=True)
    raise SystemExit(2)
print("claimed", ownership.attempt, flush=True)
while True:
    ownership.alive()
    time.sleep(0.2)
"""


@contextmanager
def holder(
    run: Path, *before: str, lease: float = 60
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that claims the run, and its first line."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", _HOLDS, str(run), str(lease)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=150)


def elsewhere() -> list[str]:
    """Words that start a command on what looks like another machine: other name, other pids."""
    return ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
            'hostname elsewhere && exec "$@"', "sh"]  # fmt: skip


def test_numbers_go_up_and_an_ended_attempt_gives_the_run_free(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        ownership = claim(tmp_path)
        assert ownership.attempt == number
        ownership.check()
        ownership.end("stopped", "SIGTERM", 10 * number)
    assert [owner.attempt for owner in owners(tmp_path)] == [1, 2, 3]
    ended = json.loads((tmp_path / "attempts" / "3" / "ended.json").read_text())
    assert ended == {"state": "stopped", "reason": "SIGTERM", "step": 30}
    assert not [p for p in (tmp_path / "attempts").iterdir() if p.name.startswith(".")]


def test_a_living_owner_is_refused_by_name_and_a_dead_one_taken_over_at_once(
    tmp_path: Path,
) -> None:
    with holder(tmp_path) as (process, line):
        assert line == "claimed 1\n"
        with pytest.raises(UserError, match=rf"in use by process {process.pid} on .*run_dir"):
            claim(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead, too
        assert claim(tmp_path).attempt == 2


def test_a_reused_pid_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    claim(tmp_path)
    file = tmp_path / "attempts" / "1" / "owner.json"
    file.write_text(json.dumps(asdict(replace(this_process(), attempt=1, born=1))))
    assert claim(tmp_path).attempt == 2


def test_of_many_that_claim_at_once_one_wins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDS, str(tmp_path), "60"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(6)
    ]
    try:
        with ThreadPoolExecutor() as pool:
            lines = list(pool.map(lambda p: p.stdout.readline() if p.stdout else "", processes))
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=150)
    assert sorted(line.split()[0] for line in lines) == ["claimed"] + ["refused"] * 5
    assert [owner.attempt for owner in owners(tmp_path)] == [1]


def test_the_later_attempt_fences_off_the_earlier(tmp_path: Path) -> None:
    first = claim(tmp_path)
    temporary = tmp_path / "checkpoints" / ".step-000000003.1.tmp"
    temporary.mkdir()
    first.end("failed", "", None)  # so that it can be taken over; it goes on all the same
    second = claim(tmp_path)
    # A rename that was decided on before the claim finds nothing to rename.
    with pytest.raises(FileNotFoundError):
        temporary.rename(tmp_path / "checkpoints" / "step-000000003")
    with pytest.raises(LostRunError, match=r"taken over by attempt 2 \(process"):
        first.check()
    second.check()


def test_a_run_folder_that_vanished_is_an_error_of_the_disk(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ownership = claim(run)
    run.rename(tmp_path / "moved")
    with pytest.raises(OSError):
        ownership.check()
    run.mkdir()  # an empty mount point
    with pytest.raises(OSError):
        ownership.check()


def test_an_unreadable_owner_is_nobody_alive(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "attempts" / "1" / "owner.json").write_text("{")
    assert newest_owner(tmp_path) == Owner(1, "unknown", "", 0, 0)
    os.utime(tmp_path / "attempts" / "1" / "alive", (0, 0))
    assert claim(tmp_path).attempt == 2


def other_machine(run: Path, **fields: object) -> None:
    """Make the newest owner one on another machine."""
    owner = newest_owner(run)
    assert owner is not None
    file = run / "attempts" / str(owner.attempt) / "owner.json"
    moved = asdict(owner) | {"machine": "another", "host": "n17"} | fields
    file.write_text(json.dumps(moved))


@pytest.mark.slow
def test_on_another_machine_the_lease_decides(tmp_path: Path) -> None:
    claim(tmp_path)
    other_machine(tmp_path)
    owner = newest_owner(tmp_path)
    assert owner is not None and is_alive(tmp_path, owner) is None
    said: list[str] = []
    began = time.monotonic()
    assert claim(tmp_path, lease=1.0, say=said.append).attempt == 2
    assert time.monotonic() - began >= 0.5
    assert len(said) == 1 and "n17" in said[0] and "1 s" in said[0]
    other_machine(tmp_path)
    long_ago = time.time() - 3600
    os.utime(tmp_path / "attempts" / "2" / "alive", (long_ago, long_ago))
    assert claim(tmp_path, lease=60, say=said.append).attempt == 3  # without waiting
    assert len(said) == 1


def test_a_requeued_job_takes_its_own_run_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    claim(tmp_path)
    other_machine(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert claim(tmp_path, lease=600).attempt == 2
    with pytest.raises(UserError, match=r"in use by process .*, job 4711"):
        claim(tmp_path)  # the same restart twice is two processes


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces of another machine")
def test_a_living_process_on_another_machine_is_refused_and_its_zombie_cannot_publish(
    tmp_path: Path,
) -> None:
    code = _ZOMBIE
    process = subprocess.Popen(
        [*elsewhere(), sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "saved 1\n"
        owner = newest_owner(tmp_path)
        assert owner is not None and owner.host == "elsewhere"
        with pytest.raises(UserError, match="on elsewhere"):
            claim(tmp_path, lease=30)
        os.killpg(process.pid, signal.SIGSTOP)  # its machine does not answer any more
        second = claim(tmp_path, lease=2)
        assert second.attempt == 2
        os.killpg(process.pid, signal.SIGCONT)
        process.stdin.write("save\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer.startswith("lost") and "taken over by attempt 2" in answer
        assert newest(tmp_path)[0] == 1
        assert [p.name for p in (tmp_path / "checkpoints").glob("*step*")] == ["step-000000001"]
        second.check()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=150)


_ZOMBIE = """
import sys, threading, time
from pathlib import Path
from tests.checkpoint.saves import Attempt
one = Attempt(Path(sys.argv[1]))
def live():
    while True:
        one.ownership.alive()
        time.sleep(0.2)
threading.Thread(target=live, daemon=True).start()
one.save(1)
print("saved 1", flush=True)
sys.stdin.readline()
result = one.try_to_save(2)
print("lost" if result.lost else "published", getattr(result, "error", ""), flush=True)
"""
