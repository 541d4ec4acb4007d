"""The public API is typed: a strict checker finds what is wrong, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import adafilter_dist

CLONE = Path(__file__).parents[2]
FILE = Path(__file__).with_name("users_file.py")
# After FILE's own lines; each is a mistake.
MISTAKES = """

def mistaken(net: AdaFilterNet, images: Tensor) -> None:
    adafilter_dist.konvert(net)
    convert(net, batchnorm="none")
    names: list[int] = load("folder")[0].classes
    parameter_groups(net)
    decide(net, images).tuned + "percent"
"""
CODES = ["attr-defined", "arg-type", "assignment", "call-arg", "operator"]


def test_it_uses_all_of_the_api_and_so_does_the_page() -> None:
    text, page = FILE.read_text(), (CLONE / "docs" / "library.md").read_text()
    for name in adafilter_dist.__all__:
        assert len(re.findall(rf"\b{name}\b", text)) > 1 or name == "__version__", name
        assert re.search(rf"\b{name}\b", page), name


@pytest.mark.slow
def test_a_strict_checker_finds_the_mistakes_alone(tmp_path: Path) -> None:
    own, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    own.write_text(FILE.read_text())
    wrong.write_text(FILE.read_text() + MISTAKES)
    words = ["--strict", "--follow-imports=silent", "--no-error-summary", "--config-file="]
    cache = f"--cache-dir={CLONE / '.mypy_cache' / 'strict'}"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, cache, str(own), str(wrong)],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    # What comes from mypy's cache names the folder of the time before.
    files = {Path(line.partition(":")[0]).name for line in lines}
    assert files == {wrong.name}, done.stdout + done.stderr
    found = {match[1] for line in lines if (match := re.search(r"\[([a-z-]+)\]$", line))}
    assert found >= set(CODES), done.stdout + done.stderr
