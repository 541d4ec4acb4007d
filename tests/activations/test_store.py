"""Activations on disk: the same tensor back, damage found, a full disk survived."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adafilter_dist.activations import store as store_module
from adafilter_dist.activations.store import ActivationStore, Counts
from adafilter_dist.system.disk import size_of

KEY, OTHER = "0123456789abcdef", "0123ffffffffffff"


def opened(folder: Path, said: list[str]) -> ActivationStore:
    return ActivationStore(folder, {"cut": "layer3"}, Counts(), said.append)


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("files/*/*")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "made",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, :1, :1].contiguous(memory_format=torch.channels_last),
        lambda x: x.flatten(1).t(),
        lambda x: x[2:],
    ],
    ids=["contiguous", "channels_last", "one pixel", "transposed", "part of a tensor"],
)
def test_values_type_and_strides_come_back(
    tmp_path: Path, dtype: torch.dtype, made: Callable[[Tensor], Tensor]
) -> None:
    x = made(torch.randn(4, 6, 3, 3).to(dtype))
    opened(tmp_path, []).write(KEY, x)
    said: list[str] = []
    back = opened(tmp_path, said).read(KEY)
    assert back is not None and said == []
    assert torch.equal(back, x) and back.dtype == dtype and back.stride() == x.stride()


def test_what_is_not_there_is_no_damage(tmp_path: Path) -> None:
    said: list[str] = []
    store = opened(tmp_path, said)
    assert not store.has(KEY) and store.read(KEY) is None and said == []


@pytest.mark.parametrize("damage", ["cut off", "a bit", "empty", "another key's"])
def test_a_damaged_file_is_found_and_written_again(tmp_path: Path, damage: str) -> None:
    x = torch.randn(4, 6, 3, 3)
    opened(tmp_path, []).write(OTHER if damage == "another key's" else KEY, x)
    path = file_of(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "another key's":
        path = path.rename(path.with_name(f"{KEY[2:]}.safetensors"))
    elif damage == "a bit":
        content[content.index(x.numpy().tobytes()) + 40] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut off" else 0])
    said: list[str] = []
    store = opened(tmp_path, said)
    assert store.has(KEY) and store.read(KEY) is None
    (line,) = said
    assert line.startswith(f"train.cache: {path} is damaged (") and "computed again" in line
    store.write(KEY, x)
    back = store.read(KEY)
    assert back is not None and torch.equal(back, x) and len(said) == 1


def test_space_is_left_to_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RESERVE", 2**60)
    said: list[str] = []
    store = opened(tmp_path, said)
    for key in (KEY, OTHER):
        store.write(key, torch.zeros(2))
        assert store.read(key) is None
    (line,) = said
    assert "is free, which is left to checkpoints; training goes on and keeps nothing more" in line


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    store = opened(tmp_path / "file" / "below", said)
    store.write(KEY, torch.zeros(2))
    assert store.read(KEY) is None and not store.has(KEY)
    (line,) = said
    assert "Not a directory" in line and "training goes on and keeps nothing more" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_fills_up_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RESERVE", 0)
    # Another process fills the disk just behind the look at what is free.
    monkeypatch.setattr(store_module, "free_space", lambda folder: 2**40)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        said: list[str] = []
        store = opened(disk / "cache", said)
        store.write(KEY, torch.zeros(1000))
        store.write(OTHER, torch.zeros(100_000))
        store.write(OTHER, torch.zeros(10))
        (line,) = said
        assert "No space left on device" in line
        assert store.has(KEY) and not store.has(OTHER)
        assert list((disk / "cache" / "unfinished").iterdir()) == []
        assert size_of(disk) > 4000
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
