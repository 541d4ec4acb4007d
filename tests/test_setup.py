"""``make setup`` on a miniature clone, whose package needs nothing from a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLONE = Path(__file__).parent.parent
PYPROJECT = """
[project]
name = "adafilter-dist"
dependencies = []
[project.optional-dependencies]
dev = ["adafilter-dist[all]"]
all = []
[project.scripts]
adafilter = "adafilter_dist.__main__:main"
"""
MAIN = "def main(): print('hello from', __file__)"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in a folder with a space in its name."""
    return make_clone(tmp_path / "my clone")


def make_clone(clone: Path) -> Path:
    shutil.copytree(CLONE / "tools", clone / "tools")
    shutil.copy(CLONE / "Makefile", clone)
    (clone / "pyproject.toml").write_text(PYPROJECT)
    (clone / "constraints.txt").touch()
    (clone / "adafilter_dist").mkdir()
    (clone / "adafilter_dist" / "__init__.py").touch()
    (clone / "adafilter_dist" / "__main__.py").write_text(MAIN)
    return clone


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's variables without the project's own; FFCV is left alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ADAFILTER_", "XDG_", "MAKE"))}
    return kept | {"HOME": str(home), "ADAFILTER_FFCV": "never", **more}


def start_setup(clone: Path, home: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "-C", str(clone), "setup"],
        env=environment(home, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def setup(clone: Path, home: Path, **more: str) -> tuple[int, str]:
    process = start_setup(clone, home, **more)
    text, _ = process.communicate()
    return process.returncode, text


def command(clone: Path, folder: Path) -> str:
    """What the clone's ``adafilter`` prints when it is called from ``folder``."""
    adafilter = clone / ".venv" / "bin" / "adafilter"
    return subprocess.run(
        [adafilter], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def test_a_second_time_nothing_is_done_again(clone: Path, home: Path, tmp_path: Path) -> None:
    code, text = setup(clone, home)
    assert code == 0, text
    assert command(clone, tmp_path) == f"hello from {clone}/adafilter_dist/__main__.py\n"
    made = (clone / ".venv" / "adafilter.json").stat().st_mtime_ns
    code, text = setup(clone, home)
    assert code == 0, text
    assert "[" not in "".join(line for line in text.splitlines() if not line.startswith("make"))
    assert (clone / ".venv" / "adafilter.json").stat().st_mtime_ns == made


def test_clones_at_once_share_the_packages_and_run_their_own_code(
    clone: Path, tmp_path: Path
) -> None:
    other, home = make_clone(tmp_path / "other"), tmp_path / "home"
    both = [start_setup(each, home) for each in (clone, other)]
    texts = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum("[1/3]" in text for text in texts) == 1
    assert len([path for path in (home / ".cache/adafilter").glob("env-*") if path.is_dir()]) == 1
    for each in (clone, other):
        assert str(each) in command(each, tmp_path)


def test_an_environment_left_half_made_is_made_anew(clone: Path, home: Path) -> None:
    assert setup(clone, home)[0] == 0
    (packages,) = (home / ".cache" / "adafilter").glob("env-*/complete")
    packages.unlink()
    shutil.rmtree(packages.parent / "bin")
    code, text = setup(clone, home)
    assert code == 0, text
    assert (packages.parent / "bin" / "python").exists()


def test_a_moved_clone_is_mended(clone: Path, home: Path, tmp_path: Path) -> None:
    assert setup(clone, home)[0] == 0
    moved = clone.rename(tmp_path / "moved")
    assert setup(moved, home)[0] == 0
    assert str(moved) in command(moved, tmp_path)


def test_without_a_home_everything_stays_in_the_clone(clone: Path, home: Path) -> None:
    code, text = setup(clone, home, HOME="")
    assert code == 0, text
    assert list((clone / ".cache").glob("env-*/complete"))


def test_a_venv_of_the_users_is_left_alone(clone: Path, home: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    code, text = setup(clone, home)
    assert code != 0
    assert "was not made by this set-up" in text
    assert (clone / ".venv" / "mine").exists()


def test_a_python_that_will_not_do_is_named_with_what_to_install(clone: Path, home: Path) -> None:
    code, text = setup(clone, home, ADAFILTER_PYTHON="/bin/false")
    assert code != 0
    assert "error: ADAFILTER_PYTHON=/bin/false" in text
    assert "apt-get install python3.11-venv" in text
