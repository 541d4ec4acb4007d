"""The stores are what `prepare` wrote, to the byte, before anybody reads them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.data.stored import verification
from adafilter_dist.data.stored.manifest import Manifest, read_manifest
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store
from adafilter_dist.data.stored.verification import DamagedStore, verify
from adafilter_dist.recipe.identity import run_hash
from adafilter_dist.system import sealed_files
from tests.data import trees
from tests.data.prepare.test_prepare import identity, prepared, recipe, refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAFILTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folders(tmp_path / "pictures", {"owl": 5, "wren": 5})


def manifest_of(done: Prepared) -> Manifest:
    manifest = read_manifest(done.folder)
    assert manifest is not None
    return manifest


def read_again(done: Prepared, *, always: bool = False) -> int:
    """Bytes that were read to verify the stores."""
    verified = verify(done.folder, manifest_of(done), always=always)
    return verified.size if verified is not None else 0


def flip(path: Path, *, keep_mtime: bool = False) -> None:
    """Change a bit in the last picture."""
    before = path.stat()
    store = Store(path)
    content = bytearray(path.read_bytes())
    content[content.index(store.encoded(len(store) - 1).tobytes()) + 100] ^= 4
    path.write_bytes(content)
    if keep_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def sizes(done: Prepared) -> tuple[int, int]:
    return done.train_store.stat().st_size, done.test_store.stat().st_size


def test_what_prepare_wrote_is_known_on_its_node(root: Path, cache: Path) -> None:
    done, _ = prepared(root)
    assert read_again(done) == 0 and read_again(done, always=True) == sum(sizes(done))
    shutil.rmtree(cache)  # as on another node
    assert read_again(done) == sum(sizes(done))
    assert read_again(done) == 0
    os.utime(done.test_store)
    assert read_again(done) == done.test_store.stat().st_size
    shutil.copy2(done.train_store, done.folder / "copy")
    (done.folder / "copy").rename(done.train_store)  # another inode
    assert read_again(done) == done.train_store.stat().st_size
    assert read_again(done) == 0


@pytest.mark.parametrize("keep_mtime", [False, True])
@pytest.mark.parametrize("store", ["train_store", "test_store"])
def test_a_flipped_bit_is_found_and_mended(root: Path, store: str, keep_mtime: bool) -> None:
    done, _ = prepared(root)
    path, sha256 = getattr(done, store), manifest_of(done).train.sha256
    flip(path, keep_mtime=keep_mtime)
    with pytest.raises(DamagedStore, match=f"{path} is damaged: its sha256"):
        read_again(done)
    with pytest.raises(DamagedStore):  # it is not remembered as anything else
        read_again(done)
    mended, said = prepared(root)
    assert f"{path} is damaged: its sha256 is not the recorded one: preparing again" in said
    assert mended.fingerprint == done.fingerprint and manifest_of(mended).train.sha256 == sha256
    assert read_again(mended, always=True) == sum(sizes(mended))
    assert "preparing again" not in prepared(root)[1]


def test_without_the_pictures_damage_cannot_be_mended(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "prepared"
    done, _ = prepared(root, prepared=place)
    away = root.rename(tmp_path / "away")
    flip(done.train_store)
    line = refused(root, prepared=place)
    assert f"{done.train_store} is damaged" in line and "put back its pictures" in line
    done.train_store.write_bytes(b"")
    assert "damaged, 0 bytes instead of" in refused(root, prepared=place)
    away.rename(root)
    assert "preparing again" in prepared(root, prepared=place)[1]


def test_prepare_verifies_as_it_is_told(root: Path, cache: Path) -> None:
    done, _ = prepared(root)
    assert "verified" not in prepared(root)[1]
    always = prepared(root, verify="always")[1]
    assert f"{done.folder} verified: 0." in always
    shutil.rmtree(cache)
    assert "verified" not in prepared(root, verify="never")[1]
    assert f"{done.folder} verified" in prepared(root)[1]
    flip(done.train_store)
    before = identity(done)
    assert prepared(root, verify="never")[1].startswith("already prepared")
    again, said = prepared(root, verify="always")
    assert "preparing again" in said and identity(again) != before


def test_how_it_is_verified_is_no_part_of_the_run() -> None:
    hashes = {run_hash(recipe(None, verify=how)) for how in ("once", "always", "never")}
    assert len(hashes) == 1


@pytest.mark.parametrize("broken", ["read-only", "a file", "torn notes"])
def test_memory_that_is_of_no_use_costs_time_only(root: Path, cache: Path, broken: str) -> None:
    done, _ = prepared(root)
    notes = list(cache.glob("verified/*/*.json"))
    assert len(notes) == 2
    if broken == "torn notes":
        for note in notes:
            note.write_bytes(note.read_bytes()[:-9])
        assert read_again(done) == sum(sizes(done)) and read_again(done) == 0
        return
    shutil.rmtree(cache)
    if broken == "a file":
        cache.write_text("")
    else:
        shutil.rmtree(cache, ignore_errors=True)
        cache.symlink_to("/proc/self")  # where nobody can write, root neither
    for _ in range(2):
        verified = verify(done.folder, manifest_of(done), always=False)
        assert verified is not None and "cannot be written" in verified.cache_error
        assert "not remembered" in verified.line("data")


def test_many_at_once_remember_the_same(root: Path, cache: Path) -> None:
    done, _ = prepared(root)
    shutil.rmtree(cache)
    read: list[int] = []
    threads = [threading.Thread(target=lambda: read.append(read_again(done))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 8 and read_again(done) == 0
    names = [path.name for path in cache.glob("verified/*/*")]
    assert len(names) == 2 and all(name.endswith(".json") for name in names)


def test_what_is_gone_is_forgotten(
    root: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_REMEMBERED", 4)
    done = [prepared(root, prepared=tmp_path / name)[0] for name in "ab"]
    shutil.rmtree(done[0].folder)
    prepared(root, prepared=tmp_path / "c")
    noted = {Path(json.loads(p.read_text())["path"]).parent.name for p in cache.rglob("*.json")}
    assert noted == {"b", "c"}


def test_beats_come_while_a_file_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = prepared(root)
    monkeypatch.setattr(sealed_files, "_CHUNK", 1000)
    beats: list[Any] = []
    verify(
        done.folder, manifest_of(done), always=True, beat=lambda *progress: beats.append(progress)
    )
    assert beats[0] == (1000, sum(sizes(done))) and beats[-1] == (sum(sizes(done)),) * 2

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        verify(done.folder, manifest_of(done), always=True, beat=stop)
