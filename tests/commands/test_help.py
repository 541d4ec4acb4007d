"""What says how to use the command does not wait for torch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.__main__ import VERBS, main
from adafilter_dist.recipe import load_recipe
from tests.shared.each_help import each_help

_ASK = """\
import sys
from adafilter_dist.__main__ import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""


def test_help_lists_the_verbs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASK, "--help"], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:-3]] == list(VERBS)


def test_every_verb_says_how_it_is_used(tmp_path: Path) -> None:
    found = each_help(tmp_path)
    assert found.keys() == set(VERBS)
    for verb, helped in found.items():
        assert (helped.code, helped.err) == (0, "")
        assert helped.out.startswith(f"usage: adafilter {verb}")


def test_a_script_for_a_cluster_is_printed_without_waiting_for_torch() -> None:
    words = ["submit", "recipe=demo", "launch.cluster=slurm", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", _ASK, *words], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash")


def test_the_first_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("e.g. ")]
    _, verb, *words = shlex.split(line.removeprefix("e.g. "))
    assert verb in VERBS
    load_recipe(words)
