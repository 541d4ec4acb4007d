from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.prepare.read_pictures import stored_pixels
from adafilter_dist.data.prepare.summary import summarise
from adafilter_dist.data.stored.manifest import read_manifest
from adafilter_dist.data.stored.prepared import Prepared, open_prepared, prepared_folder
from adafilter_dist.data.stored.store import Store
from adafilter_dist.data.stored.verification import remember
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from tests.data import trees

COUNTS = {"train/cat": 4, "train/dog": 5, "test/cat": 2, "test/dog": 3}


def recipe(root: Path | None, name: str = "imagefolder", **keys: Any) -> Recipe:
    keys = {"stored_size": 32, "num_workers": 2, "download": False, **keys}
    model = {"name": "resnet50", "weights": "IMAGENET1K_V2"}
    return Recipe.model_validate(
        {"name": "mine", "data": {"name": name, "root": root, **keys}, "model": model}
    )


def prepared(root: Path | None, name: str = "imagefolder", **keys: Any) -> tuple[Prepared, str]:
    """The prepared data and what was said of them."""
    said = io.StringIO()
    console = Console(file=said, width=200)
    done = prepare(recipe(root, name, **keys), console)
    summarise(done.folder, console)
    return done, said.getvalue()


def refused(root: Path | None, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepared(root, **keys)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folders(tmp_path / "pictures", COUNTS)


def identity(done: Prepared) -> tuple[int, int]:
    return done.train_store.stat().st_ino, done.test_store.stat().st_ino


def only_prepared_left(done: Prepared) -> bool:
    """Nothing hidden lies beside the folder, and its files are the ones it should hold."""
    beside = [path.name for path in done.folder.parent.iterdir() if path.name.startswith(".")]
    files = {path.name for path in done.folder.iterdir()}
    lists = {f"{name}.csv" for name in ("train", "test", "classes", "skipped", "duplicates")}
    stores = {f"{s}.beton{e}" for s in ("train", "test") for e in ("", ".sha256")}
    return not beside and files == {"manifest.json"} | lists | stores


@pytest.mark.parametrize(
    ("tree", "base"),
    [
        (trees.food101, "food-101"),
        (trees.caltech256, "caltech256/256_ObjectCategories"),
        (trees.stanford_dogs, ""),
        (trees.indoor67, "indoorCVPR_09"),
        (partial(trees.decathlon, name="omniglot"), "decathlon-1.0/data"),
    ],
    ids=["food101", "caltech256", "stanford_dogs", "indoor67", "omniglot"],
)
def test_official_layouts_end_to_end(
    tmp_path: Path, tree: Callable[[Path], Path], base: str, request: pytest.FixtureRequest
) -> None:
    root = tree(tmp_path)
    done, said = prepared(root, request.node.callspec.id, stored_format="raw")
    assert done.folder.parent == root and only_prepared_left(done)
    for split, path in (("train", done.train_store), ("test", done.test_store)):
        store, rows = Store(path), read_list(done.folder / f"{split}.csv")
        assert len(store) == len(rows) > 0
        for i, row in enumerate(rows):
            assert done.classes[store.labels[i]] == row["label"]
            content = (root / base / row["path"]).read_bytes()
            assert (store.read(i) == stored_pixels(content, 32)).all()
    assert "3 classes" in said and "note: this is not the full" in said


def test_summary_counts_sizes_and_classes(root: Path) -> None:
    done, said = prepared(root)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    sizes = [path.stat().st_size / 1e6 for path in (done.train_store, done.test_store)]
    assert f"train 9 {sizes[0]:.1f} MB 4 4.5 5" in lines
    assert f"test 5 {sizes[1]:.1f} MB 2 2.5 3" in lines
    assert read_list(done.folder / "classes.csv") == [
        {"class": "cat", "train": "4", "test": "2"},
        {"class": "dog", "train": "5", "test": "3"},
    ]
    assert "no picture is in both splits" in said and "skipped" not in said


def test_second_run_reads_no_picture(root: Path) -> None:
    first, _ = prepared(root)
    victim = root / "train" / "cat" / "000.jpg"
    before = victim.stat()
    victim.write_bytes(b"x" * before.st_size)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    again, said = prepared(root)
    assert "already prepared" in said
    assert identity(again) == identity(first)
    assert again.fingerprint == first.fingerprint


def test_touched_pictures_are_compared_and_nothing_is_written_again(root: Path) -> None:
    first, _ = prepared(root)
    os.utime(root / "train" / "cat" / "000.jpg", (1, 1))
    again, said = prepared(root)
    assert "already prepared" in said and identity(again) == identity(first)
    sources = json.loads((first.folder / "manifest.json").read_text())["sources"]
    os.utime(root / "train" / "cat" / "000.jpg", (2, 2))
    prepared(root)
    assert json.loads((first.folder / "manifest.json").read_text())["sources"] != sources


@pytest.mark.parametrize("change", ["content", "added", "removed", "label"])
def test_changed_pictures_are_prepared_again(root: Path, change: str) -> None:
    first, _ = prepared(root)
    victim = root / "train" / "cat" / "000.jpg"
    if change == "content":
        shutil.copyfile(root / "train" / "dog" / "000.jpg", victim)
    elif change == "added":
        shutil.copyfile(victim, root / "train" / "cat" / "new.jpg")
    elif change == "removed":
        victim.unlink()
    else:
        victim.rename(root / "train" / "dog" / "zzz.jpg")
    again, said = prepared(root)
    assert "already prepared" not in said
    assert again.fingerprint != first.fingerprint
    assert again.folder == first.folder and only_prepared_left(again)
    assert len(again.train_labels) == {"added": 10, "removed": 8}.get(change, 9)


def test_moved_root_is_the_same_data(root: Path) -> None:
    first, _ = prepared(root)
    moved = root.rename(root.with_name("elsewhere"))
    again, said = prepared(moved)
    assert "already prepared" in said
    assert again.fingerprint == first.fingerprint and again.folder.parent == moved
    # A copy with other times, prepared anew, has the same fingerprint too.
    for file in moved.rglob("*.jpg"):
        os.utime(file, (5, 5))
    fresh, _ = prepared(moved, prepared=root.with_name("fresh"))
    assert fresh.fingerprint == first.fingerprint


def test_fingerprint_tells_how_pictures_are_stored(root: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"stored_size": 48},
        {"jpeg_quality": 80},
        {"stored_format": "raw"},
    ]
    done = [prepared(root, **keys)[0] for keys in variants]
    assert len({d.fingerprint for d in done}) == len({d.folder for d in done}) == 4
    same = prepared(root, stored_format="raw", jpeg_quality=80)[0]
    assert same.folder == done[3].folder


def test_sources_may_be_gone(root: Path, tmp_path: Path) -> None:
    first, _ = prepared(root, prepared=tmp_path / "kept")
    shutil.rmtree(root)
    again, said = prepared(root, prepared=tmp_path / "kept")
    assert again.fingerprint == first.fingerprint
    assert "not compared with its pictures" in said
    assert open_prepared(recipe(root, prepared=tmp_path / "kept")).classes == ["cat", "dog"]


def damage(root: Path, count: int) -> list[Path]:
    victims = sorted((root / "train" / "dog").iterdir())[:count]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:-200])
    return victims


def test_bad_pictures_are_all_listed_and_nothing_is_kept(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, COUNTS | {"train/dog": 20})
    victims = damage(root, 13)
    (root / "test" / "cat" / "000.jpg").write_text("not a picture")
    lines = refused(root).splitlines()
    assert lines[0] == "14 of 29 pictures cannot be used:"
    assert lines[1].startswith(f"  {victims[0]}: ") and "truncated" in lines[1]
    assert lines[11] == "  ... and 4 more"
    assert "data.on_bad=skip" in lines[12] and len(lines) == 13
    assert not [path for path in root.iterdir() if path.name not in ("train", "test")]


def test_bad_pictures_may_be_skipped_and_are_recorded(root: Path) -> None:
    victims = damage(root, 2)
    (root / "test" / "cat" / "000.jpg").write_text("not a picture")
    done, said = prepared(root, on_bad="skip")
    assert (len(done.train_labels), len(done.test_labels)) == (7, 4)
    rows = read_list(done.folder / "skipped.csv")
    assert [row["path"] for row in rows] == [
        *(f"train/dog/{victim.name}" for victim in victims),
        "test/cat/000.jpg",
    ]
    assert [row["split"] for row in rows] == ["train", "train", "test"]
    assert "skipped 3: 2 image file is truncated, 1 not a picture" in said
    listed = {row["path"] for row in read_list(done.folder / "train.csv")}
    assert not listed & {row["path"] for row in rows}
    # The second run leaves them be; who does not accept bad pictures is told, twice over.
    assert "already prepared" in prepared(root, on_bad="skip")[1]
    with pytest.raises(UserError, match=r"3 bad pictures skipped .* data.on_bad=skip"):
        open_prepared(recipe(root))
    assert "3 bad pictures skipped" in refused(root)


def test_the_line_on_skipped_pictures_stays_short(root: Path) -> None:
    for width in range(60, 72):  # each has a reason of its own
        Image.new("RGB", (width, 1)).save(root / "train" / "dog" / f"{width}.png")
    _, said = prepared(root, on_bad="skip")
    assert "skipped 12: 1 60x1 px: more than 50 times" in said
    assert "times longer than wide, 4 for other reasons; listed in" in said


def test_mended_pictures_are_taken_in(root: Path) -> None:
    (victim,) = damage(root, 1)
    skipping, _ = prepared(root, on_bad="skip")
    shutil.copyfile(root / "train" / "dog" / "004.jpg", victim)
    mended, _ = prepared(root)
    assert (len(skipping.train_labels), len(mended.train_labels)) == (8, 9)
    assert mended.fingerprint != skipping.fingerprint


def test_class_of_bad_pictures_alone_is_refused(root: Path) -> None:
    damage(root, 5)
    assert "every training picture of class 'dog' is bad" in refused(root, on_bad="skip")


def test_missing_file_of_a_list_is_a_bad_picture(root: Path, tmp_path: Path) -> None:
    rows = ["path,label,split", "train/cat/000.jpg,a,train", "gone.jpg,b,train"]
    (tmp_path / "list.csv").write_text("\n".join([*rows, "test/cat/000.jpg,a,test"]))
    message = refused(root, csv=tmp_path / "list.csv")
    assert f"{root / 'gone.jpg'}: no such file" in message


def test_duplicates_across_splits_are_listed(root: Path) -> None:
    original = root / "train" / "cat" / "001.jpg"
    shutil.copyfile(original, root / "test" / "dog" / "twin.jpg")
    # Same pixels in another file: a PNG of the decoded picture.
    with Image.open(root / "train" / "dog" / "002.jpg") as picture:
        picture.save(root / "test" / "dog" / "reborn.png")
    # Twice within a split is no leak.
    shutil.copyfile(original, root / "train" / "cat" / "zzz.jpg")
    # A picture that stands for missing ones: of its pairs ten are listed.
    for number in range(12):
        shutil.copyfile(root / "test" / "cat" / "000.jpg", root / f"train/dog/x{number:02}.jpg")
    done, said = prepared(root)
    every = read_list(done.folder / "duplicates.csv")
    assert [row["train_path"] for row in every[:10]] == [
        f"train/dog/x{n:02}.jpg" for n in range(10)
    ]
    rows = every[10:]
    assert [(row["test_path"], row["train_path"]) for row in rows] == [
        ("test/dog/reborn.png", "train/dog/002.jpg"),
        ("test/dog/twin.jpg", "train/cat/001.jpg"),
        ("test/dog/twin.jpg", "train/cat/zzz.jpg"),
    ]
    assert (rows[1]["test_label"], rows[1]["train_label"]) == ("dog", "cat")
    assert "3 test pictures are in the training set too" in said


def test_place_that_cannot_be_written_names_the_key(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = refused(root, prepared=tmp_path / "file" / "prepared")
    assert str(tmp_path / "file") in message and "data.prepared" in message


def test_foreign_folder_is_never_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("x")
    assert "not written by `adafilter prepare`" in refused(root, prepared=tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1"]
    prepared(root, prepared=tmp_path / "mine")
    message = refused(root, prepared=tmp_path / "mine", stored_size=48)
    assert "data.stored_size=32, now 48" in message and "or remove this one" in message
    assert prepared(root, prepared=tmp_path / "mine")[1].startswith("already prepared")


def test_what_else_is_in_the_folder_is_not_deleted(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    prepared(root, prepared=folder)
    (folder / "runs").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / ".nfs01").touch()
    prepared(root, prepared=folder)  # nothing has to be written
    (root / "train" / "cat" / "000.jpg").unlink()
    assert f"{folder}: has to be prepared again, which would delete what else is in it: " in (
        said := refused(root, prepared=folder)
    )
    assert "notes.txt, runs; move" in said
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    (folder / "runs").rmdir()
    assert "preparing again" in prepared(root, prepared=folder)[1]


def test_a_link_stays_and_the_folder_behind_it_is_written(root: Path, tmp_path: Path) -> None:
    link, disk = tmp_path / "link", tmp_path / "disk"
    disk.mkdir()
    link.symlink_to(disk / "prepared")  # there is no such folder yet
    for pictures in (9, 8):
        done, _ = prepared(root, prepared=link)
        assert (done.folder, len(done.train_labels)) == (link, pictures)
        assert link.is_symlink() and (disk / "prepared" / "manifest.json").is_file()
        assert [path.name for path in disk.iterdir()] == ["prepared"]
        (root / "train" / "cat" / "000.jpg").unlink(missing_ok=True)


def test_no_space_is_said_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    message = refused(root, stored_format="raw")
    # 14 pictures of 32 x 40 px and a fifth more: 64,512 bytes
    assert (
        "no space for 14 pictures of 32 px: 0.1 MiB are needed, 0.0 MiB are free" in message
        and "data.prepared" in message
    )
    assert not [path for path in root.iterdir() if path.name not in ("train", "test")]
    monkeypatch.undo()
    prepared(root)


def test_damaged_store_is_noticed_and_written_again(root: Path) -> None:
    first, _ = prepared(root)
    with first.train_store.open("r+b") as file:
        file.truncate(first.train_store.stat().st_size - 1)
    with pytest.raises(UserError, match=r"train.beton: damaged, .* run: adafilter prepare"):
        open_prepared(recipe(root))
    again, said = prepared(root)
    assert "already prepared" not in said and again.fingerprint == first.fingerprint
    again.test_store.unlink()
    with pytest.raises(UserError, match=r"test.beton: missing; run: adafilter prepare"):
        open_prepared(recipe(root))


@pytest.mark.parametrize("verify", ["never", "once"])
def test_damaged_tables_are_written_again_however_it_is_verified(root: Path, verify: str) -> None:
    first, _ = prepared(root)
    content = bytearray(first.train_store.read_bytes())
    content[-4] ^= 1  # in the table of where the pictures lie
    first.train_store.write_bytes(content)
    manifest = read_manifest(first.folder)
    assert manifest is not None
    remember(first.train_store, manifest.train.sha256)  # as on a disk that kept its times
    with pytest.raises(UserError, match="its tables contradict each other; run: adafilter prepare"):
        open_prepared(recipe(root, verify=verify))
    again, said = prepared(root, verify=verify)
    assert "its tables contradict each other: preparing again" in said
    assert again.fingerprint == first.fingerprint and len(Store(again.train_store)) == 9


@pytest.mark.parametrize("change", [{"validation": -3}, {"validation": 9}, {"origins": []}])
def test_manifest_that_contradicts_itself_is_refused(root: Path, change: dict[str, Any]) -> None:
    done, _ = prepared(root)
    path = done.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for refuse in (lambda: open_prepared(recipe(root)), lambda: prepared(root)):
        with pytest.raises(UserError, match=f"{path}: damaged, .* remove {done.folder}"):
            refuse()


def test_stores_that_do_not_fit_their_manifest_are_written_again(root: Path) -> None:
    done, _ = prepared(root)
    path = done.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for change in ({"classes": ["cat"]}, {"test": manifest["test"] | {"pictures": 4}}):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=r"does not fit its manifest\.json; run: adafilter"):
            open_prepared(recipe(root))
        assert "does not fit its manifest.json: preparing again" in prepared(root)[1]
        assert open_prepared(recipe(root)).classes == ["cat", "dog"]


def test_manifest_of_another_format_is_refused(root: Path) -> None:
    done, _ = prepared(root)
    path = done.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for text in (json.dumps(manifest | {"format": 3}), path.read_text()[:-20]):
        path.write_text(text)
        with pytest.raises(UserError, match=f"remove {done.folder}"):
            open_prepared(recipe(root))


def test_open_prepared_names_the_line_that_prepares(root: Path) -> None:
    wanted = recipe(root, classes=["cat", "dog"], on_bad="skip")
    with pytest.raises(UserError) as caught:
        open_prepared(wanted)
    place = prepared_folder(wanted.data)
    assert str(caught.value) == (
        f"{place}: the data are not prepared; run: adafilter prepare recipe=imagefolder "
        f'data.root={root} data.download=false \'data.classes=["cat","dog"]\' '
        "data.stored_size=32 data.on_bad=skip"
    )


def test_splits_are_disjoint_stratified_and_nested(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"train/a": 20, "train/b": 10, "test/a": 2, "test/b": 1})
    done, _ = prepared(root, val_fraction=0.2, label_fraction=0.5)
    parts = {}
    for name, counts in (("train", [8, 4]), ("val", [4, 2]), ("test", [2, 1])):
        store, indices, labels = done.split(name)  # type: ignore[arg-type]
        assert store == (done.test_store if name == "test" else done.train_store)
        assert indices.dtype == labels.dtype == np.int64
        assert np.bincount(labels).tolist() == counts
        assert (Store(store).labels[indices] == labels).all()
        assert (np.diff(indices) > 0).all()
        parts[name] = set(indices.tolist())
    assert not parts["train"] & parts["val"]
    whole = open_prepared(recipe(root, val_fraction=0.2))
    assert set(whole.split("val")[1].tolist()) == parts["val"]
    assert set(whole.split("train")[1].tolist()) > parts["train"]
    assert len(open_prepared(recipe(root, val_fraction=0)).split("val")[1]) == 0


def test_pillow_says_nothing_of_broken_files(
    root: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    broken = bytearray(file.getvalue())
    at = broken.index(struct.pack("<HHII", 277, 3, 1, 3))  # samples a pixel
    broken[at + 8 : at + 10] = struct.pack("<H", 255)
    (root / "train" / "dog" / "broken.tif").write_bytes(broken)
    assert "1 of 15 pictures cannot be used" in refused(root)
    assert not caplog.records and not recwarn.list


def test_files_that_are_not_read_are_named_by_suffix(root: Path) -> None:
    for name in ("a.HEIC", "b.heic", "c.svg"):
        (root / "train" / "dog" / name).write_text("x")
    with Image.open(root / "train" / "dog" / "000.jpg") as picture:
        picture.save(root / "train" / "dog" / "read.gif")
    done, said = prepared(root)
    assert len(done.train_labels) == 10
    assert "2 .heic, 1 .svg; `pip install pillow-heif` has .heic read; convert .svg to PNG" in said
