"""Files read from the disk instead of memory: the page cache emptied of them, and a slow disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_DONTNEED = 4  # of madvise
_BLKIO = Path("/sys/fs/cgroup/blkio")


def drop_from_page_cache(paths: Iterable[Path]) -> float:
    """Have the kernel forget the files; the share of their bytes that it kept all the same.

    It keeps what a process has mapped and touched, see `unmap`. This needs no root.
    """
    kept = total = 0
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            if size:
                kept += _resident(file.fileno(), size)
                total += -(-size // mmap.PAGESIZE)
    return kept / max(total, 1)


def unmap(folder: Path) -> None:
    """Let go of this process's pages of the files in ``folder``; they are read again when used."""
    libc = ctypes.CDLL(None, use_errno=True)
    for begin, end in _mapped("self", folder):  # nobody writes to these pages
        if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")


def has_mapped(pid: int, folder: Path) -> bool:
    """Whether a process has files of the folder mapped, and catches the signal to unmap them."""
    with suppress(OSError):
        if _mapped(str(pid), folder):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt"))
            return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def _mapped(pid: str, folder: Path) -> list[tuple[int, int]]:
    """Addresses where the folder's files are mapped: from, to."""
    rows = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    own = [row[0].split("-") for row in rows if len(row) == 6 and row[5].startswith(f"{folder}/")]
    return [(int(begin, 16), int(end, 16)) for begin, end in own]


def speed_of_disk(large: Path, small: Sequence[Path]) -> str:
    """MB/s of a file in order, and how many small files a second; one thread, cold."""
    drop_from_page_cache([large, *small])
    began = time.perf_counter()
    with large.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    in_order = large.stat().st_size / 1e6 / (time.perf_counter() - began)
    chosen = random.Random(0).sample(small, min(1000, len(small)))
    began = time.perf_counter()
    for path in chosen:
        path.read_bytes()
    a_second = len(chosen) / (time.perf_counter() - began)
    return f"{in_order:,.0f} MB/s in order, {a_second:,.0f} of the JPEG files a second, one thread"


class SlowDisk:
    """Slows what chosen processes read from one disk, by a cgroup (version 1) of our own."""

    def __init__(self, folder: Path, megabytes: int, reads: int) -> None:
        self._group = _BLKIO / f"adafilter-{os.getpid()}"
        self._limits = {"read_bps_device": megabytes * 10**6, "read_iops_device": reads}
        self._device = _disk_of(folder)

    @staticmethod
    def missing() -> str:
        """Why it cannot be had, empty where it can."""
        if os.access(_BLKIO / "blkio.throttle.read_bps_device", os.W_OK):
            return ""
        return "no slow disk: that needs root and the controller blkio of cgroups, version 1"

    @contextmanager
    def holding(self, pids: Iterable[int]) -> Iterator[None]:
        """Slow for these processes and those that they start."""
        before = {pid: _group_of(pid) for pid in pids}
        home = next(iter(before.values()))
        self._group.mkdir()
        try:
            for name, limit in self._limits.items():
                (self._group / f"blkio.throttle.{name}").write_text(f"{self._device} {limit}")
            for pid in before:
                self._move(pid, self._group)
            yield
        finally:
            for pid in map(int, (self._group / "cgroup.procs").read_text().split()):
                self._move(pid, before.get(pid, home))
            self._group.rmdir()

    def _move(self, pid: int, group: Path) -> None:
        with suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))


def _disk_of(folder: Path) -> str:
    """``major:minor`` of the whole disk that a folder is on."""
    device = folder.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (block / "partition").exists():
        block = block.parent
    return (block / "dev").read_text().strip()


def _group_of(pid: int) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "blkio" in controllers.split(","):
            return _BLKIO / path.lstrip("/")
    return _BLKIO


def _resident(descriptor: int, size: int) -> int:
    """How many pages of a file are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        if libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), pages):
            raise OSError(ctypes.get_errno(), "mincore")
        del first
    return sum(page & 1 for page in pages)
