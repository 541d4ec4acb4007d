"""`adafilter prepare` killed half-way, and run twice at once, as real processes.

A picture is replaced by a named pipe: reading it waits for the test, so that the test knows where
the process is, without sleeping.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.recipe import load_recipe
from adafilter_dist.system import lock
from tests.data import trees

Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folders(tmp_path, {"train/a": 40, "train/b": 40, "test/a": 2, "test/b": 2})


def words(root: Path) -> list[str]:
    small = ["data.stored_size=32", "data.num_workers=2", "model.weights=null"]
    return ["recipe=imagefolder", f"data.root={root}", *small]


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Starts ``adafilter prepare``; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "adafilter_dist", "prepare", *words(root)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def pipe(root: Path) -> tuple[Path, bytes]:
    """A pipe in the place of a picture that no estimate looks at, and the picture."""
    path = root / "train" / "a" / "035.jpg"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    return path, content


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


@pytest.mark.slow
def test_killed_prepare_leaves_nothing_half_valid(
    root: Path, start: Start, pipe: tuple[Path, bytes]
) -> None:
    path, content = pipe
    process = start()
    with path.open("wb"):  # returns when the process reads this picture
        process.kill()
        process.wait()
    recipe = load_recipe(words(root))
    assert not list(root.glob("adafilter-*"))
    lock_file, scratch = hidden(root)
    assert lock_file.endswith(".lock") and ".tmp-" in scratch
    (root / scratch.replace(".tmp-", ".old-")).mkdir()  # killed between its two renames
    path.unlink()
    path.write_bytes(content)
    done = prepare(recipe, Console(quiet=True))
    assert len(done.train_labels) == 80 and hidden(root) == []
    assert open_prepared(recipe).fingerprint == done.fingerprint


@pytest.mark.slow
def test_two_at_once_wait_for_each_other(
    root: Path, start: Start, pipe: tuple[Path, bytes]
) -> None:
    path, content = pipe
    first = start()
    with path.open("wb") as feed:
        second = start()
        assert second.stdout is not None
        said = iter(second.stdout)
        assert any("waiting for another prepare" in line for line in said)
        feed.write(content)
    assert first.wait() == 0
    with path.open("wb") as feed:  # written to, the pipe has another time: it is looked at again
        feed.write(content)
    assert any("already prepared" in line for line in said)
    assert second.wait() == 0
    assert hidden(root) == [] and len(list(root.glob("adafilter-*"))) == 1
    assert len(open_prepared(load_recipe(words(root))).train_labels) == 80


def test_without_locks_nobody_elses_scratch_is_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError("no locks on this file system")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    recipe = load_recipe(words(root))
    first = prepare(recipe, Console(quiet=True))
    other = root / f".{first.folder.name}.tmp-1-a"
    other.mkdir()
    assert prepare(recipe, Console(quiet=True)).fingerprint == first.fingerprint
    assert other.is_dir()


def test_who_waited_holds_the_lock_file_that_is_there(tmp_path: Path) -> None:
    # The holder removes the file at its end; a lock on the removed one would keep nobody out.
    path, waits, seen = tmp_path / "lock", threading.Event(), []

    def second() -> None:
        with lock.exclusive(path, waits.set) as alone:
            seen.append((alone, path.exists()))

    with lock.exclusive(path, pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        thread.join(0.2)
        assert thread.is_alive() and not seen
    thread.join(30)
    assert seen == [(True, True)] and not path.exists()
