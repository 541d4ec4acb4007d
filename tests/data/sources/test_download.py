"""Downloads through torchvision from a server on this machine; none reaches the internet."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import FGVCAircraft, Food101

from adafilter_dist.data.sources import fgvc_aircraft
from adafilter_dist.data.sources.datasets import fetch_dataset, list_dataset
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data
from tests.data import trees


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over http, holding a miniature food-101.tar.gz that torchvision takes."""
    folder = tmp_path / "served"
    trees.food101(folder)
    archive = folder / "food-101.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "food-101", "food-101")
    shutil.rmtree(folder / "food-101")
    monkeypatch.setenv("no_proxy", "*")
    usage = shutil.disk_usage(tmp_path)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with serving(folder) as address:
        monkeypatch.setattr(Food101, "_URL", f"{address}/food-101.tar.gz")
        monkeypatch.setattr(Food101, "_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield folder


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder over http; gives the address."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["data", "food-101"])
def test_food101_is_downloaded_once(served: Path, tmp_path: Path, name: str) -> None:
    said: list[str] = []
    data = Data(name="food101", root=tmp_path / name)
    fetch_dataset(data, said.append)
    assert len(list_dataset(data).train) == 12
    assert len(said) == 1 and str(tmp_path / name) in said[0]
    base = tmp_path / name if name == "food-101" else tmp_path / name / "food-101"
    assert sorted(path.name for path in base.iterdir()) == ["images", "meta"]
    assert not list(base.parent.glob(".*"))
    (served / "food-101.tar.gz").unlink()
    fetch_dataset(data, said.append)
    assert len(said) == 1


def test_aircraft_is_downloaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "served"
    trees.fgvc_aircraft(folder)
    archive = folder / "fgvc-aircraft-2013b.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "fgvc-aircraft-2013b", "fgvc-aircraft-2013b")
    monkeypatch.setenv("no_proxy", "*")
    usage = shutil.disk_usage(tmp_path)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    monkeypatch.setattr(fgvc_aircraft, "_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = Data(name="fgvc_aircraft", root=tmp_path / "data")
    # What an attempt that was killed has left: the beginning of the archive.
    scratch = tmp_path / "data" / ".fgvc-aircraft-2013b.download"
    scratch.mkdir(parents=True)
    (scratch / archive.name).write_bytes(archive.read_bytes()[:5000])
    with serving(folder) as address:
        monkeypatch.setattr(FGVCAircraft, "_URL", f"{address}/{archive.name}")
        fetch_dataset(data, lambda line: None)
    assert len(list_dataset(data).train) == 12
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fgvc-aircraft-2013b"]


def test_archive_unpacked_half_way_is_not_taken_for_the_data(served: Path, tmp_path: Path) -> None:
    data = Data(name="food101", root=tmp_path / "data")
    half = tmp_path / "data" / ".food-101.download" / "food-101"
    (half / "images").mkdir(parents=True)
    (half / "meta").mkdir()
    fetch_dataset(data, lambda line: None)
    assert len(list_dataset(data).train) == 12


def test_no_network_says_what_to_do_and_keeps_nothing(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setattr(Food101, "_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar.gz")
        with pytest.raises(UserError) as caught:
            fetch_dataset(Data(name="food101", root=tmp_path / "data"), lambda line: None)
    message = str(caught.value)
    assert "Food-101 could not be downloaded" in message
    assert f"food-101.tar.gz (folders images/ and meta/) at {tmp_path}/data/food-101" in message
    assert not (tmp_path / "data" / "food-101").exists()


def test_wrong_archive_is_refused(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Food101, "_MD5", "0" * 32)
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch_dataset(Data(name="food101", root=tmp_path / "data"), lambda line: None)
    assert not (tmp_path / "data" / "food-101").exists()


def test_download_may_be_forbidden(served: Path, tmp_path: Path) -> None:
    data = Data(name="food101", root=tmp_path / "data", download=False)
    fetch_dataset(data, lambda line: pytest.fail(line))
    assert not (tmp_path / "data").exists()


def test_no_space_for_the_archive(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    lack = "no space for Food-101 .*: 10.2 GiB are needed, 953.7 MiB are free"
    with pytest.raises(UserError, match=lack):
        fetch_dataset(Data(name="food101", root=tmp_path / "data"), lambda line: None)


def test_no_right_to_write(served: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"nothing can be written there .* data.root"):
        fetch_dataset(Data(name="food101", root=tmp_path / "file" / "data"), lambda line: None)
