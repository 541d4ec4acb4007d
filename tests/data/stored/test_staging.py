"""The copy of the prepared files on a node: verified, used again, made anew when damaged."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from adafilter_dist.data.sources.origin import Origin
from adafilter_dist.data.stored import staging
from adafilter_dist.data.stored.manifest import Manifest, StoredSplit, read_manifest
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.staging import NotStaged, copy_folder, expanded, is_good, stage
from adafilter_dist.data.stored.store import Store, write_store
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.changes import check_changes
from adafilter_dist.recipe.identity import run_hash
from tests.data.conftest import prepared, recipe, records


@pytest.fixture
def shared(tmp_path: Path) -> Prepared:
    """A prepared folder with its manifest."""
    folder = tmp_path / "shared"
    folder.mkdir()
    splits = {}
    for name, count in (("train", 12), ("test", 5)):
        written = write_store(folder / name, records(count), num_workers=2)
        splits[name] = StoredSplit(
            file=written.path.name, size=written.size, sha256=written.sha256, pictures=count
        )
    manifest = Manifest(
        adafilter="0",
        settings={},
        fingerprint="f" * 64,
        sources="",
        root=folder,
        origins=[Origin(root=str(folder), csv=None)],
        classes=["a"],
        skipped=0,
        duplicates=0,
        notes=[],
        **splits,
    )
    manifest.write(folder)
    return replace(
        prepared(folder / "train.beton"), folder=folder, test_store=folder / "test.beton"
    )


def manifest_of(data: Prepared) -> Manifest:
    manifest = read_manifest(data.folder)
    assert manifest is not None
    return manifest


def silent(done: int, total: int) -> None:
    """Nobody listens."""


def same(data: Prepared, folder: Path) -> bool:
    stores = (data.train_store, data.test_store)
    return all(store.read_bytes() == (folder / store.name).read_bytes() for store in stores)


def test_a_copy_is_made_and_used_again(shared: Prepared, tmp_path: Path) -> None:
    place, told = tmp_path / "node" / "scratch", []
    copy = stage(shared, place, lambda done, total: told.append((done, total)))
    assert not copy.reused and same(shared, copy.folder)
    assert copy.folder.parent == place and copy.folder.name.startswith("f" * 64)
    sizes = sum(store.stat().st_size for store in (shared.train_store, shared.test_store))
    assert told[-1] == (2 * sizes, 2 * sizes) and told == sorted(told)
    before = (copy.folder / "train.beton").stat()
    again = stage(shared, place, silent)
    assert again.reused and again.folder == copy.folder
    assert (copy.folder / "train.beton").stat().st_ino == before.st_ino
    redirected = staging.redirected(shared, copy.folder)
    assert redirected.train_store == copy.folder / "train.beton"
    assert redirected.fingerprint == shared.fingerprint
    assert sorted(os.listdir(place)) == [copy.folder.name]  # no lock, nothing half


@pytest.mark.parametrize("what", ["truncated", "flipped", "missing", "record"])
def test_a_damaged_copy_is_made_anew(shared: Prepared, tmp_path: Path, what: str) -> None:
    folder = stage(shared, tmp_path / "node", silent).folder
    file = folder / "test.beton"
    if what == "truncated":
        os.truncate(file, 100)
    elif what == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif what == "missing":
        file.unlink()
    else:
        (folder / staging.RECORD).write_text("[1")
    assert not is_good(folder, manifest_of(shared))
    copy = stage(shared, tmp_path / "node", silent)
    assert not copy.reused and same(shared, copy.folder)
    assert os.listdir(tmp_path / "node") == [folder.name]


def test_data_prepared_anew_have_another_copy(shared: Prepared, tmp_path: Path) -> None:
    old = stage(shared, tmp_path / "node", silent).folder
    written = write_store(shared.folder / "test", records(6), num_workers=1)
    manifest = manifest_of(shared)
    test = StoredSplit(file="test.beton", size=written.size, sha256=written.sha256, pictures=6)
    manifest.model_copy(update={"test": test}).write(shared.folder)
    copy = stage(shared, tmp_path / "node", silent)
    assert not copy.reused and copy.folder != old and same(shared, copy.folder)
    assert len(Store(old / "test.beton")) == 5  # a job may still read it


def test_a_damaged_source_is_not_passed_on(shared: Prepared, tmp_path: Path) -> None:
    content = bytearray(shared.train_store.read_bytes())
    content[-300] ^= 1
    shared.train_store.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.beton is damaged: its sha256"):
        stage(shared, tmp_path / "node", silent)
    assert os.listdir(tmp_path / "node") == []


def test_a_disk_that_does_not_keep_what_is_written(
    shared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "sha256_of", lambda path, progress: "0" * 64)
    with pytest.raises(NotStaged, match="reads back as something else"):
        stage(shared, tmp_path / "node", silent)
    assert os.listdir(tmp_path / "node") == []


def test_what_the_dead_left_is_removed_and_nothing_else(shared: Prepared, tmp_path: Path) -> None:
    place = tmp_path / "node"
    name = copy_folder(place, manifest_of(shared)).name
    others = [".other.tmp", "theirs", f".{name}.another-host.7.tmp", f"{name}.txt"]
    for left in (*others, f".{name}.{socket.gethostname()}.7.tmp"):
        (place / left).mkdir(parents=True)
    stage(shared, place, silent)
    assert sorted(os.listdir(place)) == sorted([*others, name])


def test_another_job_that_copies_is_waited_for(shared: Prepared, tmp_path: Path) -> None:
    place = tmp_path / "node"
    place.mkdir()
    folder = copy_folder(place, manifest_of(shared))
    lock = place / f".{folder.name}.lock"
    beats: list[int] = []
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def other() -> None:  # copies, and frees the lock
            while len(beats) < 3:
                time.sleep(0.01)
            stage(shared, tmp_path / "elsewhere", silent)
            (tmp_path / "elsewhere" / folder.name).rename(folder)
            lock.unlink()
            fcntl.flock(held, fcntl.LOCK_UN)

        thread = threading.Thread(target=other)
        thread.start()
        copy = stage(shared, place, lambda done, total: beats.append(done))
        thread.join()
    assert copy.reused and same(shared, copy.folder) and set(beats) == {0}


def test_copying_ends_when_it_is_asked_to(shared: Prepared, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise NotStaged("asked to stop")

    with pytest.raises(NotStaged, match="asked to stop"):
        stage(shared, tmp_path / "node", stop)
    assert os.listdir(tmp_path / "node") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_is_too_small_or_read_only(
    shared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        with pytest.raises(NotStaged, match=r"no space for a copy .*: .* are needed, .* are free"):
            stage(shared, disk, silent)
        monkeypatch.setattr(staging, "free_space", lambda place: 1 << 60)
        with pytest.raises(NotStaged, match="no space"):  # somebody else filled it meanwhile
            stage(shared, disk, silent)
        assert os.listdir(disk) == []
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(NotStaged, match="Read-only file system"):
            stage(shared, disk / "sub", silent)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_place_that_is_a_file(shared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    with pytest.raises(NotStaged, match="node"):
        stage(shared, tmp_path / "node", silent)


def test_variables_are_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_HERE", "/local/7")
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    assert expanded("$SCRATCH_HERE/data") == Path("/local/7/data")
    assert expanded("${SCRATCH_HERE}") == Path("/local/7")
    with pytest.raises(NotStaged, match="SLURM_TMPDIR is not set there"):
        expanded("$SLURM_TMPDIR/data")
    monkeypatch.setenv("SCRATCH_HERE", "relative")
    with pytest.raises(NotStaged, match="not an absolute path"):
        expanded("$SCRATCH_HERE/data")


def test_where_copies_lie_is_no_part_of_the_run() -> None:
    plain, staged = recipe(), recipe(data={"stage_to": "$SLURM_TMPDIR/data"})
    assert run_hash(plain) == run_hash(staged)
    assert check_changes(plain, staged).recipe.data.stage_to == "$SLURM_TMPDIR/data"
    with pytest.raises(ValidationError, match="stage_to=here: must begin with /"):
        recipe(data={"stage_to": "here"})


def test_a_copy_of_somebody_else_is_read_whole(
    shared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage(shared, tmp_path / "node", silent).folder
    file, manifest = folder / "train.beton", manifest_of(shared)
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-300] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_good(folder, manifest)  # a quick look at our own
    monkeypatch.setattr(os, "getuid", lambda: status.st_uid + 1)
    assert not is_good(folder, manifest)
    shutil.copy(shared.train_store, file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_good(folder, manifest)
