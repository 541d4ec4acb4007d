"""Folders that an older version prepared, which read some kinds of pictures otherwise."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.sources.origin import fingerprint
from adafilter_dist.data.stored.prepared import Prepared, open_prepared
from adafilter_dist.pictures.reading import DECODING
from adafilter_dist.recipe import Recipe
from tests.data import trees
from tests.pictures.odd_pictures import encoded, photograph, without_adobe_marker


def recipe(root: Path) -> Recipe:
    data = {"name": "imagefolder", "root": root, "stored_size": 32, "num_workers": 1}
    model = {"name": "resnet18", "weights": None}
    return Recipe.model_validate({"name": "older", "data": data, "model": model})


def prepared(root: Path) -> tuple[Prepared, str]:
    said = io.StringIO()
    return prepare(recipe(root), Console(file=said, width=300)), said.getvalue()


def made_by_an_older_version(done: Prepared, root: Path) -> None:
    """Have the manifest be what the first decoding wrote: no number, files hashed as they are."""
    path = done.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("decoding") == DECODING
    splits = [
        [
            (done.classes.index(row["label"]), hashlib.sha256((root / row["path"]).read_bytes()))
            for row in read_list(done.folder / f"{split}.csv")
        ]
        for split in ("train", "test")
    ]
    contents = [[(label, 0, content.digest()) for label, content in split] for split in splits]
    older = fingerprint(recipe(root).data, done.classes, [], contents)
    path.write_text(json.dumps(manifest | {"fingerprint": older, "adafilter": "0.0.9"}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folders(tmp_path / "set", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})


def test_pictures_that_are_read_as_before_stay(root: Path) -> None:
    done, _ = prepared(root)
    made_by_an_older_version(done, root)
    older = open_prepared(recipe(root))
    assert older.notice is not None and "prepared by adafilter 0.0.9" in older.notice
    assert older.fingerprint == done.fingerprint
    inode = done.train_store.stat().st_ino
    again, said = prepared(root)
    assert "already prepared" in said and again.train_store.stat().st_ino == inode
    assert again.fingerprint == done.fingerprint and again.notice is None


def test_pictures_that_are_read_otherwise_are_prepared_again(root: Path) -> None:
    ink = without_adobe_marker(encoded(photograph().convert("CMYK"), "JPEG"))
    (root / "train" / "a" / "ink.jpg").write_bytes(ink)
    done, _ = prepared(root)
    made_by_an_older_version(done, root)
    assert open_prepared(recipe(root)).fingerprint != done.fingerprint
    again, said = prepared(root)
    assert "adafilter 0.0.9 read some of the pictures otherwise: preparing again" in said
    assert again.fingerprint == done.fingerprint and again.notice is None
    assert "already prepared" in prepared(root)[1]
