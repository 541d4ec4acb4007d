"""The job runs the code as it was at submission: a whole copy, which Python need not compile."""

from __future__ import annotations

import os
import py_compile
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import adafilter_dist
from adafilter_dist.launch import local
from adafilter_dist.launch.batch import Batch
from adafilter_dist.launch.snapshot import take_snapshot
from adafilter_dist.launch.submit import local_environment
from adafilter_dist.recipe.sections.launch import Launch
from tests.launch.test_local import until

PACKAGE = Path(adafilter_dist.__file__).parent
CLONE = PACKAGE.parent


def sources(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}


def test_it_is_the_package_with_its_recipes(tmp_path: Path) -> None:
    place = take_snapshot(tmp_path / "run" / "code")
    assert place == tmp_path / "run" / "code"
    assert sources(place / "adafilter_dist") == sources(PACKAGE)
    assert (place / "adafilter_dist" / "recipes" / "launch" / "example.yaml").is_file()
    assert (place / "adafilter_dist" / "recipes" / "demo.yaml").is_file()
    assert [path.name for path in place.parent.iterdir()] == ["code"]


def test_a_second_one_replaces_the_first(tmp_path: Path) -> None:
    place = take_snapshot(tmp_path / "code")
    (place / "adafilter_dist" / "gone.py").touch()
    take_snapshot(place)
    assert sources(place / "adafilter_dist") == sources(PACKAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


@pytest.mark.parametrize("python", ["-m", "shim"])
def test_the_copy_runs_and_not_the_clone_from_whose_root_it_was_submitted(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(Launch(environment={"A": 1}), "small", tmp_path, take_snapshot(tmp_path / "code"))
    marked = tmp_path / "code" / "adafilter_dist" / "version.py"
    marked.write_text(marked.read_text() + "\n__version__ = 'the copy'\n")
    monkeypatch.chdir(CLONE)
    command = [sys.executable, "-m", "adafilter_dist", "--version"]
    if python == "shim":  # as torchrun starts its workers: by another process
        command = [sys.executable, "-c", f"import subprocess; subprocess.run({command})"]
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("PYTHONPATH", "/somebody/elses")
    environment = local_environment(batch)
    pid = local.start([local.Turn(command, str(log))], tmp_path / "plan.json", environment)
    until(lambda: not local.is_running(str(pid)))
    os.waitpid(pid, 0)
    assert log.read_text() == "the copy\n"
    assert environment["PYTHONPATH"] == f"{tmp_path / 'code'}:/somebody/elses"
    assert environment["A"] == "1"


def test_without_a_copy_it_is_the_clone_also_where_that_is_not_installed(tmp_path: Path) -> None:
    batch = Batch(Launch(snapshot=False), "small", tmp_path, None)
    assert local_environment(batch)["PYTHONPATH"].split(":")[0] == str(CLONE)
    assert f"export PYTHONPATH={CLONE}" in batch.script(1)


def test_what_is_compiled_is_taken_over(tmp_path: Path) -> None:
    module = PACKAGE / "errors.py"
    py_compile.compile(str(module))
    place = take_snapshot(tmp_path / "code")
    tag = sys.implementation.cache_tag
    compiled = place / "adafilter_dist" / "__pycache__" / f"errors.{tag}.pyc"
    before = compiled.stat().st_mtime_ns, compiled.read_bytes()
    done = subprocess.run(
        [sys.executable, "-v", "-c", "import adafilter_dist.errors as e; print(e.__file__)"],
        env=os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    assert done.stdout.strip() == str(place / "adafilter_dist" / "errors.py")
    assert f"# {compiled} matches {place / 'adafilter_dist' / 'errors.py'}" in done.stderr
    assert (compiled.stat().st_mtime_ns, compiled.read_bytes()) == before


_KILLED = """
import os, signal, sys
from pathlib import Path
from adafilter_dist.launch.snapshot import take_snapshot
when, count = sys.argv[2], 0
def watch(event, arguments):
    global count
    if event == when:
        count += 1
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
take_snapshot(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_in_between_it_leaves_no_half_copy(tmp_path: Path) -> None:
    place = tmp_path / "code"
    whole = sources(PACKAGE)

    def killed(event: str, count: int) -> None:
        words = [sys.executable, "-c", _KILLED, str(place), event, str(count)]
        done = subprocess.run(words, timeout=150, check=False)
        assert done.returncode == -signal.SIGKILL, (event, count)

    killed("shutil.copyfile", 40)
    assert not place.exists() and list(tmp_path.iterdir())
    killed("os.rename", 1)  # whole, but not in its place yet
    assert not place.exists()
    take_snapshot(place)
    killed("shutil.copyfile", 40)
    assert sources(place / "adafilter_dist") == whole
    killed("os.rename", 2)  # the old one is away: none is better than half of one
    assert not place.exists() or sources(place / "adafilter_dist") == whole
    # What they left is cleared away once nobody can be at it any more.
    left = [path for path in tmp_path.iterdir() if path != place]
    assert left
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    take_snapshot(place)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
    assert sources(place / "adafilter_dist") == whole


def test_a_failed_copy_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = take_snapshot(tmp_path / "code")

    def full(*words: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space"):
        take_snapshot(place)
    assert sources(place / "adafilter_dist") == sources(PACKAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
