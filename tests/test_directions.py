"""Imports point one way: pyproject.toml says which folder may import from which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).parent.parent
PACKAGE = CLONE / "adafilter_dist"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the package in ``folder``, by its own pyproject.toml."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])",
        ],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_import_points_downwards() -> None:
    done = lint(CLONE)
    assert done.returncode == 0, done.stdout


def test_the_root_has_few_files() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


@pytest.mark.parametrize(
    "folder", [PACKAGE, *sorted(p.parent for p in PACKAGE.rglob("*/__init__.py"))]
)
def test_every_folder_says_what_belongs_in_it(folder: Path) -> None:
    first = (folder / "__init__.py").read_text()
    assert first.startswith('"""'), folder
