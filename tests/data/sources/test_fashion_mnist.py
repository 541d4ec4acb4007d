from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from torchvision.datasets import FashionMNIST

from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.sources import fashion_mnist
from adafilter_dist.data.sources.datasets import fetch_dataset, list_dataset
from adafilter_dist.data.sources.listing import labels_of
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.cache_folder import cache_folder


@pytest.fixture(scope="module")
def fetched() -> Data:
    """The real data set, in the user's cache folder so that it is downloaded once."""
    data = Data(name="fashion_mnist", root=cache_folder() / "fashion-mnist")
    try:
        fetch_dataset(data, print)
    except UserError as error:
        pytest.skip(str(error))
    return data


def test_published_splits_and_labels(fetched: Data) -> None:
    listing = list_dataset(fetched)
    assert (len(listing.train), len(listing.test)) == (60_000, 10_000)
    assert np.bincount(labels_of(listing.train)).tolist() == [6000] * 10
    assert np.bincount(labels_of(listing.test)).tolist() == [1000] * 10
    assert listing.classes[9] == "Ankle boot" and listing.train[0].label == 9
    first = listing.train[0].pixels
    assert first is not None and first.shape == (28, 28)


def test_torchvisions_layout_is_found_and_read_alike(fetched: Data, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    assert fetched.root is not None
    for name in fashion_mnist._SHA256:
        (raw / name).symlink_to(fetched.root / name)
    listing = list_dataset(Data(name="fashion_mnist", root=tmp_path, download=False))
    for name in fashion_mnist._SHA256:  # torchvision wants them unpacked beside
        (raw / name.removesuffix(".gz")).write_bytes(gzip.decompress((raw / name).read_bytes()))
    theirs = FashionMNIST(tmp_path, train=False)
    assert labels_of(listing.test).tolist() == theirs.targets.tolist()
    ours = np.stack([s.pixels for s in listing.test if s.pixels is not None])
    assert (ours == theirs.data.numpy()).all()


def test_another_file_under_that_name_is_refused(fetched: Data, tmp_path: Path) -> None:
    assert fetched.root is not None
    for name in fashion_mnist._SHA256:
        (tmp_path / name).symlink_to(fetched.root / name)
    changed = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(changed.read_bytes())
    changed.unlink()
    content[100] ^= 1
    changed.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz: not Fashion-MNIST's file"):
        list_dataset(Data(name="fashion_mnist", root=tmp_path))


def test_prepared_small(fetched: Data, tmp_path: Path) -> None:
    keys = {"train_per_class": 5, "test_per_class": 2, "stored_size": 64, "num_workers": 1}
    recipe = Recipe.model_validate(
        {"name": "small", "data": {**fetched.model_dump(), "prepared": tmp_path / "p", **keys}}
    )
    done = prepare(recipe, Console(file=io.StringIO()))
    assert np.bincount(done.train_labels).tolist() == [5] * 10
    assert np.bincount(done.test_labels).tolist() == [2] * 10
    picture = Store(done.test_store).read(0)
    assert picture.shape == (64, 64, 3)
    # gray stays gray, up to JPEG's rounding
    assert np.ptp(picture.astype(int), axis=2).max() <= 2


def test_nothing_there_and_no_download_says_what_is_expected(tmp_path: Path) -> None:
    data = Data(name="fashion_mnist", root=tmp_path, download=False)
    fetch_dataset(data, lambda line: pytest.fail(line))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz.*data.download=true"):
        list_dataset(data)


def test_neither_package_nor_network_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    with pytest.raises(UserError) as caught:
        fetch_dataset(Data(name="fashion_mnist", root=tmp_path / "data"), lambda line: None)
    message = str(caught.value)
    assert "no apt-get here" in message and "torchvision:" in message
    assert "install Debian's package dataset-fashion-mnist" in message
    assert list((tmp_path / "data").iterdir()) == []
