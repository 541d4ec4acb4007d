"""`adafilter prepare` killed half-way, and run twice at once, as real processes.

A picture is replaced by a named pipe, and these processes read it as a file: that waits for the
test, so that the test knows where the process is, without sleeping.
"""

from __future__ import annotations

import errno
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from adafilter_dist.data.prepare import read_pictures
from adafilter_dist.data.prepare.journal import Journal
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.stored.prepared import Prepared, open_prepared
from adafilter_dist.recipe import load_recipe
from adafilter_dist.system import lock
from tests.data import trees

Kill = Callable[[pytest.MonkeyPatch], None]
Start = Callable[[], subprocess.Popen[str]]
# `adafilter prepare`, but for pipes, which it does not read.
_PREPARE = """
import sys
from pathlib import Path
from adafilter_dist.__main__ import main
from adafilter_dist.data.prepare import read_pictures
read_pictures.content_of = Path.read_bytes
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folders(tmp_path, {"train/a": 40, "train/b": 40, "test/a": 2, "test/b": 2})


def words(root: Path) -> list[str]:
    small = ["data.stored_size=32", "data.num_workers=2", "data.on_bad=skip"]
    small.append("model.weights=null")
    return ["recipe=imagefolder", f"data.root={root}", *small]


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Starts ``adafilter prepare``; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _PREPARE, *words(root)]
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


def killed(root: Path, monkeypatch: pytest.MonkeyPatch, place: Kill) -> Path:
    """Run prepare in a process that kills itself at the place; the folder that it left."""

    def run() -> None:
        place(monkeypatch)
        prepare(load_recipe(words(root)), Console(quiet=True))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    _, scratch = hidden(root)
    return root / scratch


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def after_row(number: int) -> Kill:
    """Killed once the journals have that many rows."""

    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        add, rows = Journal.add, itertools.count(1)

        def and_die(journal: Journal, *row: Any) -> None:
            add(journal, *row)
            if next(rows) == number:
                kill()

        monkeypatch.setattr(Journal, "add", and_die)

    return install


def before(name: str) -> Kill:
    """Killed where a function of `prepare` would be called."""
    return lambda monkeypatch: monkeypatch.setattr(f"{prepare.__module__}.{name}", kill_at)


def kill_at(*of: Any, **named: Any) -> NoReturn:
    kill()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bad(root: Path) -> None:
    """Two pictures of the training set that are none."""
    for name in ("a/005.jpg", "b/009.jpg"):
        (root / "train" / name).write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("place", "stored"),
    [
        (after_row(6), 6),
        (after_row(50), 50),
        (after_row(82), 82),  # train.beton is whole then
        (before("write_lists"), 84),
        (before("Manifest"), 84),
    ],
    ids=["bad", "train", "test", "lists", "manifest"],
)
def test_what_a_killed_one_stored_is_kept(
    root: Path, bad: None, monkeypatch: pytest.MonkeyPatch, place: Kill, stored: int
) -> None:
    killed(root, monkeypatch, place)
    done, said = prepared(root)
    assert f"going on: {stored} of 84 pictures are stored already" in said
    assert hidden(root) == []
    went_on = contents(done.folder)
    shutil.rmtree(done.folder)
    assert went_on == contents(prepared(root)[0].folder)
    assert b"not a picture" in went_on["skipped.csv"]


def _torn(scratch: Path) -> None:
    journal = scratch / "train.journal"
    os.truncate(journal, journal.stat().st_size - 5)


def _zeroed(scratch: Path) -> None:
    journal = scratch / "train.journal"
    row = journal.stat().st_size // 50
    content = journal.read_bytes()
    journal.write_bytes(content[: 49 * row] + bytes(row))


def _without_reason(scratch: Path) -> None:
    (scratch / "train.reasons").write_text('[5, "not a pic')


def _flipped_reason(scratch: Path) -> None:
    path = scratch / "train.reasons"
    path.write_bytes(path.read_bytes().replace(b"not a picture", b"got a picture", 1))


def _old_reason(scratch: Path) -> None:
    with (scratch / "train.reasons").open("a") as file:
        file.write('[7, "of an earlier attempt"]\n[7]\n7\n')


def _half_written(scratch: Path) -> None:
    (scratch / ".manifest.json.123.tmp").write_text("{")


def _lost_pixels(scratch: Path) -> None:
    store = scratch / "train.beton.tmp"
    with store.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(bytes(9))


def _lost_store(scratch: Path) -> None:
    (scratch / "train.beton.tmp").unlink()


@pytest.mark.parametrize(
    ("damage", "good"),
    [
        (_torn, 49),
        (_zeroed, 49),
        (_without_reason, 5),
        (_flipped_reason, 5),
        (_old_reason, 50),
        (_half_written, 50),
        (_lost_pixels, 48),
        (_lost_store, 0),
    ],
    ids=["torn", "zeroed", "reason", "flipped", "old reason", "half", "pixels", "store"],
)
def test_what_a_stopped_machine_lost_is_stored_again(
    root: Path,
    bad: None,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    good: int,
) -> None:
    damage(killed(root, monkeypatch, after_row(50)))
    done, said = prepared(root)
    assert (f"going on: {good} of 84 pictures" in said) == bool(good)
    went_on = contents(done.folder)
    shutil.rmtree(done.folder)
    assert went_on == contents(prepared(root)[0].folder)


def test_other_pictures_are_begun_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = killed(root, monkeypatch, after_row(50))
    os.utime(root / "train" / "a" / "000.jpg", (1, 1))
    done, said = prepared(root)
    assert "going on" not in said and not scratch.exists() and hidden(root) == []
    assert len(done.train_labels) == 80


def test_what_could_not_be_read_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken disk or missing rights change neither size nor time of a picture."""
    path, content_of = root / "train" / "a" / "005.jpg", read_pictures.content_of

    def broken_disk(read: Path) -> bytes:
        if read == path:
            raise OSError(errno.EIO, "Input/output error")
        return content_of(read)

    with monkeypatch.context() as patch:
        patch.setattr(read_pictures, "content_of", broken_disk)
        killed(root, patch, after_row(50))
    done, said = prepared(root)
    assert "going on: 5 of 84" in said and len(done.train_labels) == 80


class PartWriter(io.FileIO):
    """A file of which the kernel takes 50 bytes at a time."""

    def write(self, content: Any, /) -> int:
        return super().write(memoryview(content)[:50])


def test_rows_are_written_whole(root: Path, bad: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(root)[0].folder
    wanted = contents(folder)
    shutil.rmtree(folder)
    monkeypatch.setattr(f"{Journal.__module__}._open", lambda path, size: PartWriter(path, "ab"))
    assert contents(prepared(root)[0].folder) == wanted


def test_ctrl_c_keeps_what_is_stored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Journal.add

    def interrupt(journal: Journal, *row: Any) -> None:
        add(journal, *row)
        if len(journal) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupt)
        said = io.StringIO()
        with pytest.raises(KeyboardInterrupt):
            prepare(load_recipe(words(root)), Console(file=said, width=200))
    assert "stopped: 30 of 84 pictures are stored; the same command goes on" in said.getvalue()
    assert "going on: 30 of 84" in prepared(root)[1] and hidden(root) == []


def prepared(root: Path) -> tuple[Prepared, str]:
    said = io.StringIO()
    done = prepare(load_recipe(words(root)), Console(file=said, width=200))
    return done, said.getvalue()


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
