"""``make test-versions``: the script on a miniature clone, and the table that it writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

CLONE = Path(__file__).parent.parent
PYPROJECT = """
[project]
requires-python = ">=3.11,<3.13"
classifiers = [
    "Programming Language :: Python :: 3.10",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
]
dependencies = ["torch>=2.11,<3", "numpy>=2.0"]
"""
# Sets up a Python that has this one's packages, and a command that trains in a line.
MAKEFILE = """
setup:
\t@mkdir -p .venv/bin
\t@printf '#!/bin/sh\\nexec "$(PYTHON)" "$$@"\\n' > .venv/bin/python
\t@printf '#!/bin/sh\\n[ $$1 = prepare ] && exit; mkdir -p runs/demo/1/figures\\n\
echo "{\\\\"evaluation\\\\": {\\\\"top1\\\\": 0.731}}" > runs/demo/1/figures/summary.json\\n' \
> .venv/bin/adafilter
\t@chmod +x .venv/bin/*
\t@cat "$$UV_CONSTRAINT" > constrained
\t@$(SETUP)
test-fast:
\t@$(PYTHON) -m pytest -q -ra -p no:cacheprovider
"""
TESTS = """
import pytest
def test_adds(): assert 1 + 1 == 2
def test_skips(): pytest.skip("no moon")
def test_constraints(): assert open("constrained").read() != "torch==2.11\\nnumpy==2.0\\n"
"""
TABLE = """# Versions

| case | tests |
|---|---|
| 3.11/oldest | an older row |

After the table.
"""
STARTS = 'setsid sleep 1000 & echo $$! > "$$PIDS"; sleep 1000'


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone", setup="true")


def make_clone(clone: Path, setup: str) -> Path:
    for folder in ("tools", "docs", "tests"):
        (clone / folder).mkdir(parents=True)
    shutil.copy(CLONE / "tools" / "versions.py", clone / "tools")
    (clone / "pyproject.toml").write_text(PYPROJECT)
    words = {"$(PYTHON)": sys.executable, "$(SETUP)": setup}
    makefile = MAKEFILE
    for word, value in words.items():
        makefile = makefile.replace(word, value)
    (clone / "Makefile").write_text(makefile)
    (clone / "tests" / "test_it.py").write_text(TESTS)
    (clone / "docs" / "versions.md").write_text(TABLE)
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words_of in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words_of], check=True)
    return clone


def environment(clone: Path) -> dict[str, str]:
    cache, pids = clone.parent / "cache", clone.parent / "pids"
    return os.environ | {"ADAFILTER_CACHE": str(cache), "PIDS": str(pids)}


def versions(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/versions.py", *words],
        cwd=clone,
        env=environment(clone),
        capture_output=True,
        text=True,
    )


def rows(clone: Path) -> dict[str, list[str]]:
    """The cells of the table by case."""
    lines = (clone / "docs" / "versions.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_cases_are_what_pyproject_allows(clone: Path) -> None:
    assert versions(clone, "--list").stdout.splitlines() == [
        "3.11/oldest  torch==2.11",
        "3.11/newest  the newest of everything",
        "3.12/oldest  torch==2.11",
        "3.12/newest  the newest of everything",
        "3.11/lowest  torch==2.11 numpy==2.0",
    ]


@pytest.mark.slow
def test_each_case_has_its_row_and_one_that_fails_stops_no_other(clone: Path) -> None:
    done = versions(clone, "--only", "3.11")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "skipped 1: no moon" in done.stdout and "2 of 3 held" in done.stdout
    assert "FAILED tests/test_it.py::test_constraints" in done.stdout
    table = rows(clone)
    assert list(table) == ["3.11/lowest", "3.11/newest", "3.11/oldest"]
    assert table["3.11/newest"][-3:-1] == ["2 passed, 1 skipped", "73.1 %"]
    assert table["3.11/oldest"][-3:-1] == ["2 passed, 1 skipped", "73.1 %"]
    assert table["3.11/lowest"][-3:-1] == ["1 failed, 1 passed, 1 skipped", "73.1 %"]
    assert table["3.11/newest"][0].startswith(f"{sys.version_info.major}.")
    assert (clone / "docs" / "versions.md").read_text().endswith("|\n\nAfter the table.\n")
    assert [path.suffix for path in (clone.parent / "cache" / "versions").iterdir()] == [".log"] * 3


def test_a_set_up_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone", setup="echo 'error: no such torch'; exit 2")
    assert versions(clone, "--only", "3.12/newest").returncode == 1
    assert rows(clone)["3.12/newest"][-3:-1] == ["no set-up: exit 2: error: no such torch", "-"]


@pytest.mark.slow
def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone", setup=STARTS)
    assert versions(clone, "--only", "3.12/oldest", "--limit", "0.01").returncode == 1
    assert rows(clone)["3.12/oldest"][-3] == "no set-up: not done in 0.01 min"
    assert not alive(int((tmp_path / "pids").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone", setup=STARTS)
    os.mkfifo(tmp_path / "pids")
    process = subprocess.Popen(
        [sys.executable, "tools/versions.py"],
        cwd=clone,
        env=environment(clone),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pid = int((tmp_path / "pids").read_text())
    process.send_signal(number)
    text, _ = process.communicate(timeout=150)
    assert process.returncode == 128 + number
    assert "Traceback" not in text
    assert not alive(pid)
    assert [path.suffix for path in (tmp_path / "cache" / "versions").iterdir()] == [".log"]
    assert list(rows(clone)) == ["3.11/oldest"]  # as it was


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--only", "3.14"], "error: --only 3.14: there is 3.11/oldest, 3.11/newest, "),
        ([], "is no git clone"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str, clone: Path) -> None:
    shutil.rmtree(clone / ".git")
    done = versions(clone, *words)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow  # not in the cases themselves, which may have no row yet
def test_the_table_has_what_is_allowed() -> None:
    listed = subprocess.run(
        [sys.executable, CLONE / "tools" / "versions.py", "--list"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    cases = dict(line.split(maxsplit=1) for line in listed.splitlines())
    for case, (python, torch, *_) in rows(CLONE).items():
        assert python.startswith(case.partition("/")[0])
        assert f"torch=={torch} ".startswith(cases[case].split()[0]) or "newest" in cases[case]
