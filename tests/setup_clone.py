"""A miniature clone for the tests of `make setup`, and packages for it that are in no registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

CLONE = Path(__file__).parent.parent
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "adafilter-dist"
dynamic = ["version"]
requires-python = ">=3.11,<3.14"
dependencies = {needs}
[project.optional-dependencies]
dev = ["adafilter-dist[all]"]
all = []
ffcv = ["ffcv"]
[project.scripts]
adafilter = "adafilter_dist.__main__:main"
[tool.hatch.build.targets.wheel]
packages = ["adafilter_dist"]
[tool.hatch.version]
path = "adafilter_dist/__init__.py"
"""
MAIN = "def main(): print('hello from', __file__)"


def make_clone(clone: Path, needs: Sequence[str] = (), constraints: str = "") -> Path:
    shutil.copytree(CLONE / "tools", clone / "tools")
    shutil.copy(CLONE / "Makefile", clone)
    (clone / "pyproject.toml").write_text(PYPROJECT.format(needs=list(needs)))
    (clone / "constraints.txt").write_text(constraints)
    (clone / "adafilter_dist").mkdir()
    (clone / "adafilter_dist" / "__init__.py").write_text('__version__ = "1"')
    (clone / "adafilter_dist" / "__main__.py").write_text(MAIN)
    return clone


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's variables without the project's, with uv on PATH; FFCV is left alone."""
    own = ("ADAFILTER_", "XDG_", "MAKE", "UV_", "VIRTUAL_ENV", "PIP_FIND_LINKS")
    own += ("PYTHONDONTWRITEBYTECODE",)  # the set-up would compile everything
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    (home / "bin").mkdir(exist_ok=True)
    if not (home / "bin" / "uv").exists():
        (home / "bin" / "uv").symlink_to(find_uv_bin())
    return kept | {
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "ADAFILTER_FFCV": "never",
        "ADAFILTER_TORCH_INDEX": "",
        **more,
    }


def start_setup(
    clone: Path, home: Path, target: str = "setup", **more: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "-C", str(clone), target],
        env=environment(home, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def setup(clone: Path, home: Path, target: str = "setup", **more: str) -> tuple[int, str]:
    """The exit code of ``make`` and what it printed, without make's own lines."""
    process = start_setup(clone, home, target, **more)
    text, _ = process.communicate()
    lines = [line for line in text.splitlines() if not line.startswith("make")]
    return process.returncode, "\n".join(lines)


def command(clone: Path, folder: Path) -> str:
    """What the clone's ``adafilter`` prints when it is called from ``folder``."""
    adafilter = clone / ".venv" / "bin" / "adafilter"
    return subprocess.run(
        [adafilter], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def installed(clone: Path) -> dict[str, str]:
    """The versions of what the clone's ``.venv`` holds."""
    found = clone.glob(".venv/lib/python*/site-packages/*.dist-info")
    return dict(path.stem.split("-", 1) for path in found)  # type: ignore[misc]


def make_wheel(folder: Path, name: str, version: str, needs: Sequence[str] = ()) -> None:
    """A package of one empty module in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    files = {
        f"{name}.py": "",
        f"{about}/METADATA": "\n".join(lines) + "\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
