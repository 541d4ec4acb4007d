"""`make setup` on a miniature clone: .venv, uv, the Python, the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.setup_clone import (
    command,
    installed,
    make_clone,
    make_wheel,
    setup,
    start_setup,
)

pytestmark = pytest.mark.slow
NO_NETWORK = {"ALL_PROXY": "http://127.0.0.1:9", "UV_HTTP_RETRIES": "0"}
NO_NETWORK["HTTPS_PROXY"] = NO_NETWORK["HTTP_PROXY"] = NO_NETWORK["ALL_PROXY"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in a folder with a space in its name."""
    return make_clone(tmp_path / "my clone")


def ready(clone: Path) -> Path:
    return clone / ".venv" / "adafilter-ready"


def test_a_second_time_nothing_is_done_again(clone: Path, home: Path, tmp_path: Path) -> None:
    code, text = setup(clone, home)
    assert code == 0, text
    assert command(clone, tmp_path) == f"hello from {clone}/adafilter_dist/__main__.py\n"
    made = ready(clone).stat().st_mtime_ns
    # Not even uv is asked.
    code, text = setup(clone, home, PATH="/usr/bin:/bin")
    assert (code, text) == (0, f"ready: source {clone}/.venv/bin/activate")
    assert ready(clone).stat().st_mtime_ns == made


def test_clones_at_once_share_uv_and_its_cache_and_run_their_own_code(
    clone: Path, tmp_path: Path
) -> None:
    make_wheel(tmp_path / "wheels", "large", "1")
    home, words = tmp_path / "home", {"UV_FIND_LINKS": str(tmp_path / "wheels")}
    home.mkdir()
    # An uv that is too old, as that of a distribution may be, is passed over.
    (home / "bin").mkdir()
    (home / "bin" / "uv").symlink_to("/bin/false")
    clones = [make_clone(tmp_path / name, ["large"]) for name in ("one", "two")]
    both = [start_setup(each, home, **words) for each in clones]
    texts = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum(text.count("uv: into") for text in texts) == 1
    assert (home / ".cache" / "adafilter" / "uv" / "bin" / "uv").exists()
    for each in clones:
        assert str(each) in command(each, tmp_path)
    files = [path for each in clones for path in each.glob(".venv/lib/*/site-packages/large.py")]
    assert len(files) == 2
    assert files[0].samefile(files[1])


def test_two_at_once_in_one_clone_wait_for_each_other(clone: Path, home: Path) -> None:
    both = [start_setup(clone, home) for _ in range(2)]
    texts = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert command(clone, clone)


def test_a_venv_left_half_made_is_made_anew(clone: Path, home: Path) -> None:
    assert setup(clone, home)[0] == 0
    ready(clone).unlink()
    shutil.rmtree(clone / ".venv" / "bin")
    code, text = setup(clone, home)
    assert code == 0, text
    assert command(clone, clone)


def test_an_activated_venv_is_made_anew_by_the_uv_outside(clone: Path, home: Path) -> None:
    assert setup(clone, home)[0] == 0
    inside, outside = clone / ".venv" / "bin", home / ".cache" / "adafilter" / "uv" / "bin"
    outside.mkdir(parents=True, exist_ok=True)
    for folder in (inside, outside):
        (folder / "uv").symlink_to(find_uv_bin())
    ready(clone).unlink()
    path = f"{inside}:{os.environ['PATH']}"
    code, text = setup(clone, home, PATH=path, VIRTUAL_ENV=str(clone / ".venv"))
    assert code == 0, text
    assert command(clone, clone)


def test_another_requirement_changes_what_differs(clone: Path, home: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_wheel(tmp_path / "wheels", name, "1")
    words = {"UV_FIND_LINKS": str(tmp_path / "wheels")}
    project = clone / "pyproject.toml"
    project.write_text(project.read_text().replace("[]", "['first']", 1))
    assert setup(clone, home, **words)[0] == 0
    kept = clone / ".venv" / "kept"
    kept.touch()
    project.write_text(project.read_text().replace("first", "second", 1))
    code, text = setup(clone, home, **words)
    assert code == 0, text
    assert installed(clone) == {"adafilter_dist": "1", "second": "1"}
    # What cannot be had leaves .venv as it is.
    project.write_text(project.read_text().replace("second", "third", 1))
    for _ in range(2):
        code, text = setup(clone, home, **words, **NO_NETWORK)
        assert code == 2
        assert kept.exists()


def test_a_venv_of_an_older_set_up_is_replaced(clone: Path, home: Path, tmp_path: Path) -> None:
    packages = clone / ".venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "adafilter-dist.pth").write_text("/nowhere\n")
    (clone / ".venv" / "adafilter.json").write_text("{}")
    code, text = setup(clone, home)
    assert code == 0, text
    assert not (clone / ".venv" / "adafilter.json").exists()
    assert str(clone) in command(clone, tmp_path)


def test_a_moved_clone_is_mended(clone: Path, home: Path, tmp_path: Path) -> None:
    assert setup(clone, home)[0] == 0
    moved = clone.rename(tmp_path / "moved")
    assert setup(moved, home)[0] == 0
    assert str(moved) in command(moved, tmp_path)


def test_without_a_home_everything_stays_in_the_clone(clone: Path, home: Path) -> None:
    code, text = setup(clone, home, HOME="")
    assert code == 0, text
    assert list((clone / ".cache" / "uv-cache").glob("archive-*"))


def test_a_venv_of_the_users_is_left_alone(clone: Path, home: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    code, text = setup(clone, home)
    assert code != 0
    assert "was not made by this set-up" in text
    assert (clone / ".venv" / "mine").exists()


def test_a_python_that_was_named_stays(clone: Path, home: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    code, text = setup(clone, home, ADAFILTER_PYTHON=version)
    assert code == 0, text
    python = clone / ".venv" / "bin" / "python"
    assert f"Python {version}." in subprocess.check_output([python, "--version"], text=True)
    made = ready(clone).read_text()
    assert f" {version} " in made
    assert setup(clone, home)[0] == 0
    assert ready(clone).read_text() == made


@pytest.mark.parametrize("python", ["/bin/false", "no-such-python"])
def test_a_python_that_will_not_do_is_one_line(clone: Path, home: Path, python: str) -> None:
    code, text = setup(clone, home, ADAFILTER_PYTHON=python)
    assert code == 2
    assert text.startswith(f"error: ADAFILTER_PYTHON={python} is no Python 3.11 to 3.13 (")
    assert len(text.splitlines()) == 1


def test_without_network_the_packages_come_from_uvs_cache(
    clone: Path, home: Path, tmp_path: Path
) -> None:
    assert setup(clone, home)[0] == 0
    other = make_clone(tmp_path / "other")
    code, text = setup(other, home, **NO_NETWORK)
    assert code == 0, text
    assert command(other, tmp_path)


def test_without_network_and_cache_it_is_one_line(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    code, text = setup(clone, tmp_path / "home", **NO_NETWORK)
    assert code == 2
    assert text.startswith("error: the packages cannot be fetched (")
    assert len(text.splitlines()) == 1


def test_without_network_and_uv_it_is_one_line(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").symlink_to("/bin/false")
    code, text = setup(clone, tmp_path, **NO_NETWORK)
    assert code == 2
    error = text.splitlines()[-1]
    assert error.startswith("error: uv is not on PATH, and pip cannot install it (")


def test_pips_configuration_holds_unless_uv_has_its_own(clone: Path, tmp_path: Path) -> None:
    home, name = tmp_path / "home", "adafilter-of-the-site"
    for folder in ("site", "mine"):
        make_wheel(tmp_path / folder, name.replace("-", "_"), "1" if folder == "site" else "2")
    (home / ".config" / "pip").mkdir(parents=True)
    settings = f"[global]\nfind-links =\n    {tmp_path / 'none'}\n    {tmp_path / 'site'}\n"
    (home / ".config" / "pip" / "pip.conf").write_text(settings)
    (tmp_path / "none").mkdir()
    (clone / "pyproject.toml").write_text(
        (clone / "pyproject.toml").read_text().replace("[]", f"['{name}']", 1)
    )
    code, text = setup(clone, home)
    assert code == 0, text
    assert installed(clone)["adafilter_of_the_site"] == "1"
    other = make_clone(tmp_path / "other", [name])
    code, text = setup(other, home, UV_FIND_LINKS=str(tmp_path / "mine"))
    assert code == 0, text
    assert installed(other)["adafilter_of_the_site"] == "2"
