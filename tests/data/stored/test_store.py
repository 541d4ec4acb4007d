from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Record, Store, write_store
from adafilter_dist.errors import UserError
from tests.data.conftest import SAMPLES, needs_ffcv, picture, records
from tests.distributed.launch import ROOT


def test_raw_pictures_come_back(raw: Prepared) -> None:
    store = Store(raw.train_store)
    assert len(store) == SAMPLES
    for number in range(SAMPLES):
        assert np.array_equal(store.read(number), picture(number))
        assert store.labels[number] == number % 7
        assert (store.heights[number], store.widths[number]) == picture(number).shape[:2]


def test_jpeg_pictures_come_back_nearly(jpg: Prepared) -> None:
    store = Store(jpg.train_store)
    for number in range(SAMPLES):
        found = store.read(number)
        assert np.abs(found.astype(int) - picture(number)).mean() < 6
        with Image.open(io.BytesIO(store.encoded(number).tobytes())) as by_pillow:
            assert by_pillow.format == "JPEG"
            assert np.abs(found.astype(int) - np.asarray(by_pillow)).mean() < 1


@pytest.mark.parametrize("format", ["jpg", "raw"])
def test_the_same_bytes_with_any_number_of_workers(tmp_path: Path, format: str) -> None:
    written = [
        write_store(tmp_path / str(workers), records(30), format=format, num_workers=workers)
        for workers in (1, 3)
    ]
    assert written[0].path.read_bytes() == written[1].path.read_bytes()
    assert written[0].sha256 == hashlib.sha256(written[0].path.read_bytes()).hexdigest()
    assert written[0].size == written[0].path.stat().st_size


def test_records_that_are_none_are_left_out(tmp_path: Path) -> None:
    some: list[Record] = [*records(2), lambda: None, *records(1), lambda: None]
    done: list[int] = []
    written = write_store(tmp_path / "x", some, format="raw", progress=done.append)
    assert written.kept.tolist() == [0, 1, 3]
    assert written.labels.tolist() == [0, 1, 0]
    store = Store(written.path)
    assert [store.read(k).shape for k in range(3)] == [picture(k).shape for k in (0, 1, 0)]
    assert np.array_equal(store.read(2), picture(0))
    assert done == [1, 2, 3, 4, 5]


def test_an_error_in_a_record_ends_the_writing_and_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> tuple[np.ndarray, int]:
        raise UserError("cat.jpg is truncated")

    with pytest.raises(UserError, match=r"cat\.jpg is truncated"):
        write_store(tmp_path / "x", [*records(20), broken, *records(20)], num_workers=2)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), not float64 \(4, 4\)"):
        write_store(tmp_path / "x", [lambda: (np.zeros((4, 4)), 0)])


def test_pages_are_not_crossed_and_too_large_a_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adafilter_dist.data.stored.layout.PAGE", 1 << 15)
    written = write_store(tmp_path / "x", records(12), format="raw")
    store = Store(written.path)
    for k in range(12):
        first = int(store._offsets[k])
        assert first >> 15 == (first + int(store._sizes[k]) - 1) >> 15
        assert np.array_equal(store.read(k), picture(k))
    large: list[Record] = [lambda: (np.zeros((128, 128, 3), np.uint8), 0)]
    with pytest.raises(UserError, match="takes 49152 bytes, allowed are 32768; lower data"):
        write_store(tmp_path / "y", large, format="raw")


def test_missing_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.beton is missing; run `adafilter prepare`"):
        Store(tmp_path / "train.beton")


def _cut(content: bytes) -> bytes:
    return content[:-1]


def _halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _empty(content: bytes) -> bytes:
    return b""


def _stub(content: bytes) -> bytes:
    return content[:100]


def _grow(content: bytes) -> bytes:
    return content + b"\0"


def _other(content: bytes) -> bytes:
    return b"PK" + content[2:]


def _rows(content: bytes) -> bytes:
    at = 24 + 2 * 1041 + 24 * 3 + 5  # the fourth picture's offset
    return content[:at] + b"\xff" + content[at + 1 :]


def _beyond(content: bytes) -> bytes:
    row = 24 + 2 * 1041 + 24 * 3 + 5
    table = len(content) - 24 * (SAMPLES - 3) + 8
    changed = bytearray(content)
    for at in (row, table):
        assert content[at : at + 8] == content[row : row + 8]
        changed[at + 6] = 1
    return bytes(changed)


@pytest.mark.parametrize("damage", [_beyond, _cut, _halve, _empty, _stub, _grow, _other, _rows])
def test_a_damaged_file_is_noticed_on_opening(
    jpg: Prepared, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "train.beton"
    path.write_bytes(damage(jpg.train_store.read_bytes()))
    with pytest.raises(UserError, match=r"is damaged: .*; run `adafilter prepare`"):
        Store(path)


def test_a_jpeg_that_is_none(jpg: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    content = bytearray(jpg.train_store.read_bytes())
    first = int(Store(jpg.train_store)._offsets[5])
    content[first : first + 2] = b"xx"
    path.write_bytes(content)
    store = Store(path)
    store.read(4)
    with pytest.raises(UserError, match="record 5 cannot be decoded"):
        store.read(5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["jpg", "raw"])
def test_stock_ffcv_reads_the_file(
    format: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Its own reader and its own decoder, with both of its ways of reading."""
    needs_ffcv()
    prepared: Prepared = request.getfixturevalue(format)
    store = Store(prepared.train_store)
    command = [
        sys.executable,
        "-m",
        "tests.data.loading.stock_ffcv",
        str(prepared.train_store),
        ".",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)
    for os_cache in (True, False):
        read = np.load(tmp_path / f"{os_cache}.npz")
        assert len(read["images"]) == SAMPLES
        for number, image in enumerate(read["images"]):
            found = store.read(number)
            top, left = ((side - 64) // 2 for side in found.shape[:2])
            cropped = found[top : top + 64, left : left + 64].astype(int)
            # FFCV decodes JPEGs with the fast transform.
            assert np.abs(image - cropped).mean() <= (2 if format == "jpg" else 0)
            assert read["labels"][number] == number % 7
