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

from adafilter_dist.data.loading.backend import ReadPlan
from adafilter_dist.data.loading.numba_backend import NumbaBackend
from adafilter_dist.data.loading.read_ahead import PAGE_SIZE, read_ahead
from adafilter_dist.data.stored.store import Store, write_store

RECORDS = np.array([150, 20, 90])


def resident(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each page of the mapped file is in memory."""
    pages = -(-content.size // mmap.PAGESIZE)
    kept = np.zeros(pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(content.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(content.size), ctypes.c_void_p(kept.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore")
    return (kept & 1).astype(bool)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """200 pictures of 12 kB, of which nothing but the tables is in memory."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = write_store(tmp_path / "s", [lambda: (picture, 0)] * 200, format="raw").path
    store = Store(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(store.content)[pages_of(store, RECORDS)].any():
        pytest.skip(f"{tmp_path} is in memory")
    return store


def pages_of(store: Store, records: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a page holds a part of one of the records."""
    pages = np.zeros(-(-store.content.size // PAGE_SIZE), bool)
    for offset, size in store.index[records, :2]:
        pages[offset // PAGE_SIZE : (offset + size - 1) // PAGE_SIZE + 1] = True
    return pages


@pytest.mark.may_skip("folders in memory have no disk to read from")
def test_announced_records_are_read_and_no_others(store: Store) -> None:
    store.read_at_random()
    before, pages = resident(store.content), pages_of(store, RECORDS)
    read_ahead(store.content, store.index[RECORDS], PAGE_SIZE)
    while not resident(store.content)[pages].all():  # the test's time limit ends this
        time.sleep(0.001)
    assert not (resident(store.content) & ~before & ~pages).any()


@pytest.mark.may_skip("folders in memory have no disk to read from")
def test_the_loader_reads_nothing_around_its_records(store: Store) -> None:
    before, pages = resident(store.content), pages_of(store, RECORDS)
    plan = ReadPlan(RECORDS[None], RECORDS[None], lambda which: np.array([[0, 0, 48, 48, 0]] * 3))
    (images,) = NumbaBackend(store, 48, workers=1, pin=False).read(plan)
    assert images.shape == (3, 3, 48, 48)
    after = resident(store.content)
    assert after[pages].all() and not (after & ~before & ~pages).any()
