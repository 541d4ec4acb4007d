"""What a command does whose output nobody reads, or nobody can write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adafilter_dist.__main__ import VERBS
from tests.shared.each_help import Helped, each_help

CLONE = Path(__file__).parents[2]


# What is printed waits in a buffer until the end, but where a user wants it otherwise.
BUFFERED = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


def ended(
    *words: str, output: int, folder: Path, both: bool = False, **environment: str
) -> tuple[int, str]:
    """Exit code and stderr of ``adafilter WORDS`` whose stdout (or both) is ``output``."""
    done = subprocess.run(
        [sys.executable, "-m", "adafilter_dist", *words],
        cwd=folder,
        env=BUFFERED | {"PYTHONPATH": str(CLONE)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if both else subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr or ""


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder whose runs/ holds one."""
    for name in ("status.json", "recipe.yaml", "log.txt"):
        place = tmp_path / "runs" / "demo" / "0123abcd"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text('{"state": "stopped", "step": 3}\n')
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--json"),
        ("status", "--watch"),
        ("logs", "runs/demo/0123abcd"),
        ("train", "recipe=demo", "--cfg"),
        pytest.param(
            ("submit", "recipe=demo", "--dry-run", "launch.cluster=slurm"), marks=pytest.mark.slow
        ),
        ("--help",),
        ("--version",),
    ],
    ids=" ".join,
)
def test_a_broken_pipe_ends_it_without_a_word(
    words: tuple[str, ...], unread: int, runs: Path
) -> None:
    assert ended(*words, output=unread, folder=runs) == (141, "")


def test_a_broken_pipe_ends_the_help_of_every_verb_without_a_word(
    unread: int, tmp_path: Path
) -> None:
    assert each_help(tmp_path, unread) == dict.fromkeys(VERBS, Helped(141, "", ""))


def test_lines_that_do_not_wait_in_a_buffer(unread: int, runs: Path) -> None:
    assert ended("status", output=unread, folder=runs, PYTHONUNBUFFERED="1") == (141, "")


def test_mistakes_into_a_broken_pipe(unread: int, runs: Path) -> None:
    assert ended("status", "nowhere", output=unread, both=True, folder=runs) == (141, "")


def test_an_output_that_is_full_or_closed(runs: Path) -> None:
    with open("/dev/full", "wb") as full:
        code, said = ended("status", output=full.fileno(), folder=runs)
    assert (code, said) == (
        1,
        "error: the output cannot be written: No space left on device\n",
    )
    closed = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m adafilter_dist status >&-"],
        cwd=runs,
        env=BUFFERED | {"PYTHONPATH": str(CLONE)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_table_that_nobody_reads_ends_a_command_without_a_word() -> None:
    program = (
        "import sys\n"
        "from adafilter_dist.system.console import Console\n"
        "from adafilter_dist.system.exit_code import exit_code\n"
        "sys.stdin.read()\n"  # until the reader is gone
        "sys.exit(exit_code(lambda: Console().print('row') or 0))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
