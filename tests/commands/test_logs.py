"""``adafilter logs``: the output of a rank, from files that come, grow and are replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.status.logs import Follower, last_of
from tests.shared.following import submit, write_status

CLONE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two ranks that printed 100 lines each, and runs."""
    folder = tmp_path / "runs" / "demo"
    log = submit(folder, tasks=2)
    for rank in range(2):
        lines = [f"rank {rank} line {number}\n" for number in range(100)]
        Path(str(log).replace("%t", f"{rank}")).write_text("".join(lines))
    write_status(folder, "running")
    return folder


def test_the_last_lines_of_a_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"rank 0 line {number}" for number in range(50, 100)]
    assert main(["logs", str(run), "--rank", "1", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "rank 1 line 99\n"
    assert main(["logs", str(run), "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 100
    assert main(["logs", str(run), "--lines", "0"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rank", ["2", "-1"])
def test_a_rank_that_is_not_there(run: Path, rank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(run), f"--rank={rank}"]) == 2
    assert capsys.readouterr().err == f"error: --rank {rank}: {run} has ranks 0 to 1\n"


def test_one_file_for_all_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = submit(tmp_path / "run", job="1", cluster="local", tasks=2)
    log.write_bytes("épochs\n[rank1] half a line".encode())
    for rank in ("0", "1"):
        assert main(["logs", str(tmp_path / "run"), "--rank", rank]) == 0
        assert capsys.readouterr().out == "épochs\n[rank1] half a line\n"


def test_a_run_started_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_status(run, "stopped")
    assert main(["logs", str(run)]) == 2
    assert f"{run / 'log.txt'} is not there; the run is stopped" in capsys.readouterr().err
    (run / "log.txt").write_text("epoch 1\n")
    assert main(["logs", str(run)]) == 0
    assert capsys.readouterr().out == "epoch 1\n"
    assert main(["logs", str(run), "--rank", "1"]) == 2
    assert "was started by hand, so only what rank 0 said" in capsys.readouterr().err


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: no run; " in capsys.readouterr().err
    assert main(["logs", str(run), "--lines", "-1"]) == 2
    (run / "submitted.json").write_text("{")
    assert main(["logs", str(run)]) == 2
    assert "submitted.json is damaged; what rank 0 said is in" in capsys.readouterr().err
    submit(run, tasks=1)
    assert main(["logs", str(run), "--rank", "1"]) == 2
    assert "has only rank 0" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("size", [1, 100, 70_000])
def test_last_lines_of_files_of_any_size(tmp_path: Path, ending: str, size: int) -> None:
    path = tmp_path / "log"
    lines = [f"{number}{'x' * size}" for number in range(5)]
    path.write_text("\n".join(lines) + ending)
    for wanted in range(1, 8):
        content, end = last_of(path, wanted)
        assert content.decode().splitlines() == lines[-wanted:]
        assert end == path.stat().st_size


def test_following_a_file_that_comes_grows_is_cut_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = Follower(path)
    seen: list[bytes] = []
    for content in (None, b"", b"one", b"one two", b"six", b"six and more"):
        if content is not None:
            path.write_bytes(content)
        seen.append(b"".join(follower.news()))
    assert seen == [b"", b"", b"one", b" two", b"six", b" and more"]
    (tmp_path / "new").write_bytes(b"another file that is longer")
    (tmp_path / "new").replace(path)
    assert b"".join(follower.news()) == b"another file that is longer"


class Following:
    """``adafilter logs --follow`` as a process, its output read as it comes."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adafilter_dist", "logs", "--follow", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(CLONE)},
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 120
        while text not in self.output:
            assert time.monotonic() < until, self.output
            time.sleep(0.02)

    def end(self) -> int:
        code = self.process.wait(timeout=150)
        self._reader.join(20)
        return code


@pytest.fixture
def started() -> Iterator[list[Following]]:
    found: list[Following] = []
    yield found
    for each in found:
        each.process.kill()
        each.end()


@pytest.mark.slow
def test_following_from_the_queue_over_a_restart_to_the_end(
    tmp_path: Path, started: list[Following]
) -> None:
    run = tmp_path / "run"
    log = Path(str(submit(run)).replace("%t", "2"))
    following = Following(str(run), "--rank", "2")
    started.append(following)
    following.wait_for(f"[waiting for {log}; the run is queued]\n")
    log.write_text("first\n")
    following.wait_for("first\n")
    write_status(run, "running")
    with log.open("a") as file:
        file.write("stopped by TERM\n")
        file.flush()
        write_status(run, "queued", reason="preempted")
        time.sleep(0.2)
        file.write("going on\n")
        write_status(run, "running")
    following.wait_for("going on\n")
    write_status(run, "finished")
    with log.open("a") as file:
        file.write("the very last line\n")
    assert following.end() == 0
    shown = [line for line in following.output.splitlines() if not line.startswith("[")]
    assert shown == ["first", "stopped by TERM", "going on", "the very last line"]
    assert following.output.endswith("[the run is finished]\n")
    assert following.output.count("[waiting for") == 1


def test_ctrl_c_ends_following_and_nothing_else(run: Path, started: list[Following]) -> None:
    following = Following(str(run), "--lines", "2")
    started.append(following)
    following.wait_for("rank 0 line 99")
    following.process.send_signal(signal.SIGINT)
    assert following.end() == 0
    assert following.output == "rank 0 line 98\nrank 0 line 99\n"


def test_a_reader_that_has_enough(run: Path) -> None:
    (run / "submitted" / "0.log").write_text("a line\n" * 100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "adafilter_dist", "logs", "--all", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(CLONE)},
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"a line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=150) == 0
    process.stderr.close()
