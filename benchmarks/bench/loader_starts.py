"""The start of an epoch with few and with many records: time, memory, what is read, files.

The small pictures repeat, and their files are hard links; as files they count one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.disk import drop_from_page_cache
from bench.loader_pictures import Kind, Pictures, kept
from bench.loader_process import LoaderProcess, Started
from bench.loaders import Loader, Work
from bench.reporting import Column, Table, Value, say

COLUMNS = [
    Column("loader"),
    Column("records", 0),
    Column("to make it, s", 2),
    Column("then the first batch, s", 2),
    Column("CPU s of both", 2),
    Column("read of both, MiB", 1),
    Column("memory, MiB", 0),
    Column("of that a record, bytes", 0),
    Column("files", 0),
    Column("on disk, MiB", 0),
]
SIDE = 32
_DISTINCT = 500
_BATCHES = 20
_SIZE = 32


@dataclass
class _OnDisk:
    """Files of one kind: how many names, bytes in whole blocks, and one name of each inode."""

    names: int
    bytes: int
    distinct: list[Path]


def starts(
    loaders: Sequence[Loader],
    folder: Path,
    counts: Sequence[int],
    batch: int,
    workers: int,
    failed: dict[str, str],
) -> Table:
    """Each loader in a new process with each number of records; what fails goes to ``failed``."""
    table = Table(f"Start of an epoch, JPEGs of {SIDE} px, {workers} workers", COLUMNS)
    loaders = [one for one in loaders if not one.raw]
    rows: dict[str, list[tuple[int, Started, _OnDisk]]] = {}
    for count in counts:
        say(f"making {count:,} pictures of {SIDE} px")
        pictures = kept(folder / f"{count}", count, SIDE, distinct=_DISTINCT, raw=False)
        work = Work(pictures, _SIZE, batch, workers)
        on_disk = {kind: _on_disk(pictures, kind) for kind in {one.reads for one in loaders}}
        for loader in loaders:
            own = on_disk[loader.reads]
            drop_from_page_cache(own.distinct)
            try:
                with LoaderProcess(loader.name, pictures.folder.parent) as process:
                    started = process.ask("start", work, _BATCHES)
            except RuntimeError as error:
                failed[loader.name] = str(error).strip().splitlines()[-1]
                continue
            rows.setdefault(loader.name, []).append((count, started, own))
            say(
                f"{loader.name}, {count:,} records: made in {started.build:.2f} s, a batch after "
                f"{started.first:.2f} s more, CPU {started.cpu:.2f} s, read "
                f"{started.read / 2**20:.1f} MiB, memory {started.memory.total / 2**20:.0f} MiB"
            )
    for name, each in rows.items():
        least_count, least, _ = each[0]
        for count, started, own in each:
            more = started.memory.total - least.memory.total
            a_record: Value = more / (count - least_count) if count > least_count else None
            table.add(
                *(name, count, started.build, started.first, started.cpu, started.read / 2**20),
                *(started.memory.total / 2**20, a_record),
                *(own.names, own.bytes / 2**20),
            )
    return table


def _on_disk(pictures: Pictures, kind: Kind) -> _OnDisk:
    disk = _OnDisk(0, 0, [])
    inodes: set[int] = set()
    for path in pictures.of(kind):
        stat = path.stat()
        disk.names += 1
        disk.bytes += stat.st_blocks * 512  # also of a hard link: another's picture is a file
        if stat.st_ino not in inodes:
            inodes.add(stat.st_ino)
            disk.distinct.append(path)
    return disk
