"""Domains of pictures: from a list, through prepared data and both loaders, into batches."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import BatchTransfer
from adafilter_dist.data.loading.loader import EvalLoader, TrainLoader
from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.prepare.summary import summarise
from adafilter_dist.data.stored.manifest import read_manifest
from adafilter_dist.data.stored.prepared import Domains, Prepared, open_prepared
from adafilter_dist.data.stored.store import Store, write_store
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from tests.data import trees
from tests.data.conftest import PREPROCESS, decode_by_nvjpeg, records
from tests.data.listings import listed, refused

NAMES = ["photo", "sketch, ink"]
PICTURES = 24


def domain(number: int) -> str:
    """Of picture ``number`` of its class: neither in blocks nor in turns."""
    return NAMES[number % 5 in (1, 2)]


def write_list(root: Path, column: bool = True) -> Path:
    """A CSV of the pictures of two classes, a quarter of them test."""
    rows = ["path,label,split" + ",Domain" * column]
    for name in ("a", "b"):
        for number, path in enumerate(sorted((root / name).iterdir())):
            row = f"{name}/{path.name},{name},{'test' if number % 4 == 3 else 'train'}"
            rows.append(row + f',"{domain(number)}"' * column)
    file = root / "list.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def recipe(root: Path, **data: Any) -> Recipe:
    keys = {"name": "imagefolder", "csv": str(root / "list.csv"), "num_workers": 2, **data}
    train = {"global_batch": 8, "micro_batch": 4}
    return Recipe.model_validate(
        {"name": "domains", "data": {"val_fraction": 0.2, **keys}, "train": train}
    )


def prepared(root: Path, **data: Any) -> Prepared:
    return prepare(recipe(root, **data), Console(quiet=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    trees.folders(root, {"a": PICTURES, "b": PICTURES})
    write_list(root)
    return root


def expected(data: Prepared, split: str) -> list[str]:
    """The domains of a split, by the list beside the store."""
    path, positions, _ = data.split(split)  # type: ignore[arg-type]
    rows = read_list(data.folder / f"{path.stem}.csv")
    return [domain(int(Path(rows[position]["path"]).stem)) for position in positions]


def in_words(domains: Domains | None) -> list[str]:
    assert domains is not None
    return [domains.names[number] for number in domains.numbers]


def test_prepared_data_keep_the_domain_of_each_picture(root: Path) -> None:
    data = prepared(root)
    manifest = read_manifest(data.folder)
    assert manifest is not None and manifest.domains == NAMES == data.domains
    for split in ("train", "val", "test"):
        assert in_words(data.domains_of(split)) == expected(data, split)
        thin = PreparedSubset.of(data, 5)
        assert in_words(thin.domains_of(split)) == expected(thin, split)
    assert read_list(data.folder / "test.csv")[1]["domain"] == domain(7)


def test_batches_carry_domains(root: Path, kind: str) -> None:
    chosen = recipe(root, loader="numba" if kind == "nvjpeg" else kind)
    data = prepared(root)
    cpu = torch.device("cpu")
    loader = TrainLoader(data, chosen, PREPROCESS, rank=0, world_size=1, device=cpu)
    if kind == "nvjpeg":
        decode_by_nvjpeg(loader)
    with loader.epoch(0) as batches:
        parts = list(batches)
    test = EvalLoader(data, "test", chosen, PREPROCESS, rank=0, world_size=1, batch_size=5)
    assert in_words(test.domains) == expected(data, "test")
    for split, some in (("train", parts), ("test", list(test))):
        wanted, brought = expected(data, split), BatchTransfer(PREPROCESS, cpu).bring(some[:2])
        index = torch.cat([part.index for part in some[:2]]).tolist()
        assert brought.domain is not None and brought.domain.dtype == torch.int64
        assert [NAMES[number] for number in brought.domain.tolist()] == [wanted[i] for i in index]


def test_without_domains_nothing_changes(root: Path, tmp_path: Path) -> None:
    trees.folders(tmp_path, {"a": 4, "b": 4})
    write_list(tmp_path, column=False)
    data = prepared(tmp_path)
    # Older versions refuse a manifest with a key that they do not know.
    assert "domains" not in json.loads((data.folder / "manifest.json").read_text())
    assert data.domains_of("train") is None
    loader = EvalLoader(
        data, "test", recipe(tmp_path), PREPROCESS, rank=0, world_size=1, batch_size=2
    )
    batch: MicroBatch = next(iter(loader))
    assert batch.domain is None and loader.domains is None
    assert BatchTransfer(PREPROCESS, torch.device("cpu")).bring([batch]).domain is None
    plain = write_store(tmp_path / "plain", records(3))
    assert plain.sha256 == write_store(tmp_path / "zeros", records(3), domains=[0, 0, 0]).sha256


def test_other_domains_are_other_data(root: Path, tmp_path: Path) -> None:
    trees.folders(tmp_path, {"a": 6, "b": 6})
    file = write_list(tmp_path)
    first = prepared(tmp_path)
    file.write_text(file.read_text().replace("photo", "painting"))
    with pytest.raises(UserError, match=r"list\.csv: changed since"):
        open_prepared(recipe(tmp_path))
    renamed = prepared(tmp_path)
    assert renamed.domains == ["painting", "sketch, ink"]
    lines = file.read_text().splitlines()
    lines[1] = lines[1].replace('"painting"', '"sketch, ink"')
    file.write_text("\n".join(lines))
    moved = prepared(tmp_path)
    assert len({data.fingerprint for data in (first, renamed, moved)}) == 3
    assert in_words(moved.domains_of("train"))[0] == "sketch, ink"


def test_domains_stay_with_the_classes_that_are_used(root: Path) -> None:
    file = root / "list.csv"
    whole, part = (listed("imagefolder", None, csv=file, classes=c) for c in (None, ["b", "a"]))
    assert part.domains == NAMES
    assert [s.domain for s in part.train] == [s.domain for s in whole.train]


def test_a_store_whose_domains_do_not_fit_its_manifest_is_damaged(root: Path) -> None:
    data = prepared(root, prepared=str(root / "other"))
    path = data.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"domains": NAMES[:1]}))
    with pytest.raises(UserError, match=r"train\.beton: does not fit its manifest"):
        open_prepared(recipe(root, prepared=str(root / "other")))
    assert np.array_equal(np.unique(Store(data.train_store).domains), [0, 1])


def test_prepare_says_how_many_pictures_a_domain_has(root: Path) -> None:
    data, said = prepared(root, val_fraction=0.0), io.StringIO()
    summarise(data.folder, Console(file=said, width=200))
    of = {
        name: [expected(data, split).count(name) for split in ("train", "test")] for name in NAMES
    }
    for name, (train, test) in of.items():
        assert f"domain {name}: {train} train, {test} test\n" in said.getvalue()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,label,domain", "a.jpg,x,photo", "b.jpg,y,"], "line 3: no domain"),
        (["path,label,domain,DOMAIN", "a.jpg,x,p,p"], "names the column domain twice"),
        (["path,label,domain", "a.jpg,x,train", "b.jpg,y,test"], "name it split, or leave it out"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: list[str], message: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text("\n".join(rows) + "\n")
    assert message in refused("imagefolder", None, csv=file)
