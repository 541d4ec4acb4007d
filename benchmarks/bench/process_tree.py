"""What a process and all its descendants use: CPU seconds, memory, bytes from disk; from /proc."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK = os.sysconf("SC_CLK_TCK")
_SECONDS_BETWEEN_LOOKS = 0.1


def processes(root: int | None = None) -> list[int]:
    """The process ``root`` (by default this one) and its descendants."""
    top = psutil.Process(root)
    with suppress(psutil.NoSuchProcess):
        return [top.pid, *(child.pid for child in top.children(recursive=True))]
    return []


def cpu_seconds(root: int | None = None) -> float:
    """User and system time of the tree, also of children that have ended and were waited for."""
    total = 0
    for pid in processes(root):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / _TICK


class Others:
    """The share of the machine's CPU time, since this was made, that went to other processes."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """From 0 to 1."""
        total, busy, own = (b - a for a, b in zip(self._before, self._now(), strict=True))
        return max(0.0, busy - own) / total if total else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of all cores, those that were not idle, and those of this process's tree."""
        line = Path("/proc/stat").read_text().splitlines()[0]
        ticks = [int(each) for each in line.split()[1:9]]  # guests' are among the user's
        idle = ticks[3] + ticks[4]
        return sum(ticks) / _TICK, (sum(ticks) - idle) / _TICK, cpu_seconds()


def read_bytes(root: int | None = None) -> int:
    """Bytes that the tree has had read from disks, also by children that were waited for."""
    total = 0
    for pid in processes(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
    return total


def memory_bytes(root: int | None = None) -> dict[int, int]:
    """Memory of each process of the tree that is no mapped file; shared pages are divided."""
    bytes_by_process = {}
    for pid in processes(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib = {
                name: int(rest.split()[0])
                for name, _, rest in (s.partition(":") for s in lines[1:])
            }
            bytes_by_process[pid] = (kib["Pss_Anon"] + kib["Pss_Shmem"]) * 1024
    return bytes_by_process


@dataclass
class Peak:
    """The most memory that was seen: of the tree, of its root alone, and how many processes."""

    total: int = 0
    root: int = 0
    processes: int = 0

    def look(self, root: int | None = None) -> None:
        """Look once more."""
        bytes_by_process = memory_bytes(root)
        own = bytes_by_process.get(os.getpid() if root is None else root, 0)
        self.total, self.root = max(self.total, sum(bytes_by_process.values())), max(self.root, own)
        self.processes = max(self.processes, len(bytes_by_process))


@contextmanager
def watched(root: int | None = None) -> Iterator[Peak]:
    """Watches the memory of a tree from a thread, ten times a second and at the end."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            peak.look(root)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.look(root)
