"""Records that are announced come from the disk, and nothing around them."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adafilter_dist.data.loading.read_ahead import PAGE_SIZE, read_ahead
from adafilter_dist.data.stored.store import Store, write_store


def resident(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each page of the mapped file is in memory."""
    pages = -(-content.size // mmap.PAGESIZE)
    kept = np.zeros(pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(content.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(content.size), ctypes.c_void_p(kept.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore")
    return (kept & 1).astype(bool)


@pytest.mark.may_skip("folders in memory have no disk to read from")
def test_announced_records_are_read_and_no_others(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = write_store(tmp_path / "s", [lambda: (picture, 0)] * 200, format="raw").path
    store = Store(path)
    store.read_at_random()
    content, index = store.content, store.index
    records = np.array([150, 20, 90])
    pages = np.zeros(-(-content.size // PAGE_SIZE), bool)
    for offset, size in index[records, :2]:
        pages[offset // PAGE_SIZE : (offset + size - 1) // PAGE_SIZE + 1] = True
    # Reading the tables has mapped their pages, which therefore stay.
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resident(content)
    if before[pages].any():
        pytest.skip(f"{tmp_path} is in memory")
    read_ahead(content, index[records], PAGE_SIZE)
    while not resident(content)[pages].all():  # the test's time limit ends this
        time.sleep(0.001)
    after = resident(content)
    assert not (after & ~before & ~pages).any()
    assert store.read(20).tobytes() == picture.tobytes()
