"""Our loader beside its peers, on the same pictures: speed, CPU time, memory, how they decode.

    python benchmarks/loader_table.py                        # 10 minutes
    python benchmarks/loader_table.py --quick                # a minute: how the table looks
    python benchmarks/loader_table.py --only DALI --only ours
    python benchmarks/loader_table.py --starts 10000 1000000 # many records: an epoch's start

Each loader runs in a process of its own: random crops of 224 px and flips, uint8 batches on the
CPU. All take their turn in each round, after an epoch that is not counted; medians over the rounds.
A loader that is not installed, or fails, has a line that says so, with the line that installs it.

CPU time is that of all processes of the loader, user and system; on a busy machine it says more
than the speed. Memory is what the processes have for themselves, without mapped files. Grey levels
from Pillow: whole pictures scaled to the crop's size, beside Pillow's decoder and its antialiased
bilinear scaling.

Cold: before the epoch the kernel was made to forget the pictures' files (posix_fadvise, which needs
no root), and workers to unmap them. What was read is what the kernel counted of the disk
(/proc/PID/io): a cold epoch that read less than its files was not cold. Names and inodes stay in
memory. Slow: the same with a disk that gives --slow-disk MB/s and --slow-reads a second, as a busy
network file system may; this needs root and cgroups of version 1, whose limits concern the loaders'
own processes alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

# As the command `adafilter` does, before torch is imported: threads that spin starve the loaders.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench.disk import SlowDisk, speed_of_disk
from bench.loader_pictures import Pictures, copied, kept, probes_in
from bench.loader_process import LoaderProcess, Memory, Passed, forget
from bench.loader_starts import starts
from bench.loaders import LOADERS, Loader, Work
from bench.process_tree import Others
from bench.reporting import Column, Table, commit, processor, say, slug

from adafilter_dist.system.files import make_folder, write_text
from adafilter_dist.version import __version__

SPEED = [
    Column("loader"),
    Column("workers", 0),
    Column("pictures/s", 0),
    Column("lowest", 0),
    Column("highest", 0),
    Column("CPU ms a picture", 2),
    Column("ours, numba / this, CPU", 2),
    Column("first batch, s", 2),
    Column("cold, pictures/s", 0),
    Column("read, MiB", 0),
    Column("slow disk, pictures/s", 0),
    Column("memory, MiB", 0),
    Column("of the first process", 0),
    Column("processes", 0),
]
QUALITY = [
    Column("loader"),
    Column("reads"),
    Column("order"),
    Column("decodes with; scales by"),
    Column("grey levels from Pillow, most", 0),
    Column("mean", 2),
]
VERSIONS = (
    *("torch", "torchvision", "pillow", "ffcv", "webdataset", "litdata", "spdl"),
    "nvidia-dali-cuda120",
)
_PROBES = 8
OURS, OURS_RAW = "ours, numba", "ours, numba, raw"


@dataclass
class Measured:
    """What was measured of a loader with a number of workers."""

    passes: list[Passed] = field(default_factory=list)
    cold: list[Passed] = field(default_factory=list)
    slow: list[Passed] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(0, 0, 0))

    @property
    def speeds(self) -> list[float]:
        """Pictures a second of each round."""
        return [one.pictures / one.seconds for one in self.passes]

    @property
    def cpu(self) -> float:
        """CPU seconds a picture."""
        return statistics.median(one.cpu / one.pictures for one in self.passes)

    @property
    def read(self) -> float | None:
        """MiB that a cold epoch read."""
        return statistics.median(one.read for one in self.cold) / 2**20 if self.cold else None


def main() -> None:
    arguments = options()
    loaders = [one for one in LOADERS if chosen(one, arguments.only)]
    failed = {one.name: one.missing() for one in loaders if one.missing()}
    for name, why in failed.items():
        say(f"{name}: {why}")
    loaders = [one for one in loaders if one.name not in failed]
    others = Others()
    quality = Table("How they decode", QUALITY)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = (arguments.data or Path(scratch)).resolve()
        if arguments.starts:
            of = f"JPEGs of 32 px, batches of {arguments.batch}, files not in memory"
            workers = arguments.workers[-1]
            table = starts(
                loaders, folder, sorted(arguments.starts), arguments.batch, workers, failed
            )
        else:
            pictures = made(folder, arguments)
            of = about(pictures, arguments)
            with ExitStack() as stack:
                processes = {
                    one.name: stack.enter_context(LoaderProcess(one.name, folder))
                    for one in loaders
                }
                qualities(processes, quality, folder, arguments, failed)
                table = speeds(processes, pictures, arguments, failed)
    for one in LOADERS:
        if one.name in failed:
            quality.add(one.name, one.reads, one.order, failed[one.name], None, None)
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"{processor()}, {os.cpu_count()} cores; other processes used "
        f"{others.share():.0%} of them",
        "pictures": of,
        "versions": ", ".join(
            [
                f"adafilter-dist {__version__}, commit {commit()}",
                f"Python {platform.python_version()}",
            ]
            + [f"{name} {version}" for name in VERSIONS if (version := version_of(name))]
        ),
    }
    write(arguments, table, quality, facts)


def options() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--quick", action="store_true", help="few pictures, one round, 1 worker")
    parser.add_argument("--only", action="append", help="loaders with this in their name")
    parser.add_argument("--store", type=Path, help="a .beton of JPEGs instead of made-up pictures")
    parser.add_argument("--pictures", type=int, help="how many to make up (2000)")
    parser.add_argument("--stored-size", type=int, default=256, help="their shortest side (256)")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--batch", type=int, help="pictures a batch (128)")
    parser.add_argument("--workers", type=int, nargs="+", help=f"numbers of them (1, 2, {cores})")
    parser.add_argument("--rounds", type=int, help="counted epochs of each (5)")
    parser.add_argument("--cold-rounds", type=int, help="epochs from disk, with most workers (3)")
    parser.add_argument("--slow-disk", type=int, default=50, help="MB/s (50); 0: no slow disk")
    parser.add_argument("--slow-reads", type=int, default=500, help="reads a second (500)")
    parser.add_argument(
        "--starts", type=int, nargs="+", help="measure the start of epochs of so many records"
    )
    parser.add_argument("--data", type=Path, help="make the pictures here, and keep them")
    parser.add_argument(
        "--scratch", type=Path, help="where to write; by default as tempfile has it"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.pictures = arguments.pictures or (96 if quick else 2000)
    arguments.batch = arguments.batch or (32 if quick else 128)
    arguments.rounds = arguments.rounds or (1 if quick else 5)
    arguments.workers = sorted(
        {1} if quick else {1, 2, cores} if not arguments.workers else {*arguments.workers}
    )
    arguments.cold_rounds = (
        (1 if quick else 3) if arguments.cold_rounds is None else arguments.cold_rounds
    )
    return arguments


def chosen(loader: Loader, only: Sequence[str] | None) -> bool:
    """Whether --only asks for it."""
    return only is None or any(words in loader.name for words in only)


def made(folder: Path, arguments: argparse.Namespace) -> Pictures:
    """The pictures, in all the forms that loaders read."""
    if arguments.store:
        say(f"copying {arguments.store}")
        return copied(folder / "copy", arguments.store)
    say(f"making {arguments.pictures:,} pictures")
    return kept(folder / "made", arguments.pictures, arguments.stored_size)


def about(pictures: Pictures, arguments: argparse.Namespace) -> str:
    """What the pictures are, how they are read, and how fast the disk is."""
    made_up = f"made up, {arguments.stored_size} px"
    return (
        f"{pictures.count:,} JPEGs, {arguments.store.name if arguments.store else made_up}, "
        f"{size_of(pictures.of('files')):.0f} MiB, their pixels "
        f"{size_of(pictures.of('raw store')):.0f} MiB; crops of {arguments.size} px, batches of "
        f"{arguments.batch}, {arguments.rounds} rounds; disk: "
        f"{speed_of_disk(pictures.raw_store, pictures.of('files'))}"
        + (f"; slow disk: {slow}" if (slow := slowness(arguments)) else "")
    )


def slowness(arguments: argparse.Namespace) -> str:
    """How slow the slow disk is, or why there is none; empty where none was asked for."""
    if not arguments.slow_disk or not arguments.cold_rounds:
        return ""
    return (
        SlowDisk.missing()
        or f"{arguments.slow_disk} MB/s and {arguments.slow_reads} reads a second"
    )


def size_of(files: Sequence[Path]) -> float:
    """MiB."""
    return sum(path.stat().st_size for path in files) / 2**20


def qualities(
    processes: dict[str, LoaderProcess],
    table: Table,
    folder: Path,
    arguments: argparse.Namespace,
    failed: dict[str, str],
) -> None:
    """How far from Pillow's the pixels of each loader are; those that do not run are removed."""
    probes = probes_in(folder / "probes", _PROBES, arguments.stored_size)
    work = Work(probes, arguments.size, _PROBES, 1, (1, 1), (1, 1), 0)
    for loader in LOADERS:
        if loader.name not in processes:
            continue
        say(f"{loader.name}: whole pictures beside Pillow's")
        with leaving_out(loader.name, processes, failed):
            most, mean = processes[loader.name].ask("differences", work)
            table.add(loader.name, loader.reads, loader.order, loader.quality, most, mean)


@contextmanager
def leaving_out(
    name: str, processes: dict[str, LoaderProcess], failed: dict[str, str]
) -> Iterator[None]:
    """A loader that fails is left out of the rest, and says in a line why."""
    try:
        yield
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        install = next(one.install for one in LOADERS if one.name == name)
        failed[name] = f"failed: {last}" + (f"; {install}" if install else "")
        say(f"{name}: left out, it {failed[name]}")
        del processes[name]


def speeds(
    processes: dict[str, LoaderProcess],
    pictures: Pictures,
    arguments: argparse.Namespace,
    failed: dict[str, str],
) -> Table:
    """All loaders with each number of workers."""
    table = Table("Loaders side by side", SPEED)
    for workers in arguments.workers:
        work = Work(pictures, arguments.size, arguments.batch, workers)
        last = workers == arguments.workers[-1]
        measured = measure(processes, work, arguments if last else None, arguments.rounds, failed)
        for name, one in measured.items():
            raw = next(each.raw for each in LOADERS if each.name == name)
            best = measured.get(OURS_RAW if raw else OURS)
            table.add(
                *(name, workers, statistics.median(one.speeds), min(one.speeds), max(one.speeds)),
                *(1e3 * one.cpu, None if best is None else best.cpu / one.cpu),
                statistics.median(each.first for each in one.passes),
                *(speed_of(one.cold), one.read, speed_of(one.slow)),
                *(one.memory.total / 2**20, one.memory.root / 2**20, one.memory.processes),
            )
    return table


def measure(
    processes: dict[str, LoaderProcess],
    work: Work,
    from_disk: argparse.Namespace | None,
    rounds: int,
    failed: dict[str, str],
) -> dict[str, Measured]:
    """Epochs of each loader in turn, one of them for its memory, then those from disk."""
    measured = {name: Measured() for name in processes}
    for name in [*processes]:
        say(f"{name}, {work.workers} workers: an epoch that is not counted, but for its memory")
        with leaving_out(name, processes, failed):
            processes[name].ask("build", work)
            measured[name].memory = processes[name].ask("memory")
    for number in range(rounds):
        for name in [*processes]:
            with leaving_out(name, processes, failed):
                measured[name].passes.append(processes[name].ask("epoch"))
                speed = f"{measured[name].speeds[-1]:,.0f} pictures/s"
                say(f"{name}, {work.workers} workers, round {number + 1}: {speed}")
    if from_disk is not None:
        cold_rounds(processes, work.pictures, from_disk, measured, failed)
    return {name: measured[name] for name in processes}


def cold_rounds(
    processes: dict[str, LoaderProcess],
    pictures: Pictures,
    arguments: argparse.Namespace,
    measured: dict[str, Measured],
    failed: dict[str, str],
) -> None:
    """Epochs from disk; then as many, two at most, from a slow one."""
    files = pictures.every_file()
    disk = None
    if arguments.slow_disk and not SlowDisk.missing():
        disk = SlowDisk(pictures.folder, arguments.slow_disk, arguments.slow_reads)
    slow_rounds = min(2, arguments.cold_rounds) if disk else 0
    for number in range(arguments.cold_rounds + slow_rounds):
        slow = disk if number >= arguments.cold_rounds else None
        for name in [*processes]:
            stays = forget(processes.values(), files)
            with leaving_out(name, processes, failed):
                process = processes[name]
                with process.slowed(slow) if slow else nullcontext():
                    passed = process.ask("epoch")
                (measured[name].slow if slow else measured[name].cold).append(passed)
                say(
                    f"{name}, from {'a slow' if slow else 'the'} disk: "
                    f"{passed.pictures / passed.seconds:,.0f} pictures/s, "
                    f"read {passed.read / 2**20:.1f} MiB"
                    + (f"; {100 * stays:.0f} % had stayed in memory" if stays else "")
                )


def speed_of(passes: Sequence[Passed]) -> float | None:
    """Pictures a second, the median."""
    return statistics.median(one.pictures / one.seconds for one in passes) if passes else None


def version_of(name: str) -> str:
    """Of a package, empty where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def write(
    arguments: argparse.Namespace, speed: Table, quality: Table, facts: dict[str, str]
) -> None:
    """Print both tables; write them as Markdown, and the first as CSV."""
    folder = arguments.out
    make_folder(folder)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    what = "loader-starts" if arguments.starts else "loader-peers"
    path = folder / f"{what}-{slug(processor())}-{today}.md"
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    shown = [table for table in (speed, quality) if table.rows]
    text = "\n".join(table.markdown() for table in shown) + "\n" + "\n".join(lines) + "\n"
    write_text(path, text)
    write_text(path.with_name(f"{path.stem}.csv"), speed.csv(facts))
    print(text)
    print(f"written: {path} and .csv")


if __name__ == "__main__":
    main()
