"""Our loader beside its peers, on the same JPEGs: speed, CPU time, memory, and how they decode.

    python benchmarks/loader_table.py                # 10 minutes
    python benchmarks/loader_table.py --quick        # a minute: how the table looks
    python benchmarks/loader_table.py --only DALI --only ours

Each loader runs in a process of its own: random crops of 224 px and flips, uint8 batches on the
CPU. All take their turn in each round, after an epoch that is not counted; medians over the rounds.
Loaders that are not installed are left out, with the line that installs them.

Cold: the page cache was emptied of the pictures before the epoch (posix_fadvise). CPU time is that
of all processes of the loader, user and system; on a busy machine it says more than the speed.
Memory is what the processes have for themselves, without mapped files. Grey levels from Pillow:
whole pictures scaled to the crop's size, beside Pillow's decoder and its antialiased bilinear
scaling.
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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

# As the command `adafilter` does, before torch is imported: threads that spin starve the loaders.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench.loader_pictures import Pictures, make_probes, make_up, spread
from bench.loader_process import LoaderProcess, Memory, Passed, drop_from_page_cache
from bench.loaders import LOADERS, Loader, Work
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
    Column("memory, MiB", 0),
    Column("of the first process", 0),
    Column("processes", 0),
]
QUALITY = [
    Column("loader"),
    Column("decodes with; scales by"),
    Column("grey levels from Pillow, most", 0),
    Column("mean", 2),
]
VERSIONS = (
    *("torch", "torchvision", "pillow", "ffcv", "webdataset", "litdata", "spdl"),
    "nvidia-dali-cuda120",
)
_PROBES = 8


@dataclass
class Measured:
    """What was measured of a loader with a number of workers."""

    passes: list[Passed] = field(default_factory=list)
    cold: list[Passed] = field(default_factory=list)
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
    def cold_speed(self) -> float | None:
        """Pictures a second of an epoch from disk."""
        speeds = [one.pictures / one.seconds for one in self.cold]
        return statistics.median(speeds) if speeds else None


def main() -> None:
    arguments = options()
    for loader in LOADERS:
        if chosen(loader, arguments.only) and loader.missing():
            say(loader.missing())
    loaders = [one for one in LOADERS if chosen(one, arguments.only) and not one.missing()]
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        say(f"making {arguments.pictures:,} pictures")
        store = arguments.store or make_up(
            folder / "store", arguments.pictures, arguments.stored_size, arguments.format
        )
        pictures = spread(store, folder / "pictures")
        probes = make_probes(folder / "probe-store", _PROBES, arguments.stored_size)
        probe = Work(
            spread(probes, folder / "probes"), arguments.size, _PROBES, 1, (1, 1), (1, 1), 0
        )
        with ExitStack() as stack:
            processes = {
                loader.name: stack.enter_context(LoaderProcess(loader.name)) for loader in loaders
            }
            quality = qualities(processes, probe)
            speed = speeds(processes, pictures, arguments)
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"{processor()}, {os.cpu_count()} cores; {load:.1f} processes wanted them at "
        f"the beginning, {os.getloadavg()[1]:.1f} at the end",
        "pictures": f"{pictures.count:,} JPEGs, {arguments.format} in FFCV's file, "
        + (f"{arguments.store.name}" if arguments.store else f"made up, {arguments.stored_size} px")
        + f"; crops of {arguments.size} px, batches of {arguments.batch}, "
        f"{arguments.rounds} rounds",
        "versions": ", ".join(
            [
                f"adafilter-dist {__version__}, commit {commit()}",
                f"Python {platform.python_version()}",
            ]
            + [f"{name} {version}" for name in VERSIONS if (version := version_of(name))]
        ),
    }
    write(arguments.out, speed, quality, facts)


def options() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--quick", action="store_true", help="few pictures, one round, 1 worker")
    parser.add_argument("--only", action="append", help="loaders with this in their name")
    parser.add_argument("--format", choices=["jpg", "raw"], default="jpg", help="of FFCV's file")
    parser.add_argument("--store", type=Path, help="a .beton file instead of made-up pictures")
    parser.add_argument("--pictures", type=int, help="how many to make up (2000)")
    parser.add_argument("--stored-size", type=int, default=256, help="their shortest side (256)")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--batch", type=int, help="pictures a batch (128)")
    parser.add_argument("--workers", type=int, nargs="+", help=f"numbers of them (1, 2, {cores})")
    parser.add_argument("--rounds", type=int, help="counted epochs of each (5)")
    parser.add_argument("--cold-rounds", type=int, help="epochs from disk, with most workers (3)")
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


def qualities(processes: dict[str, LoaderProcess], probe: Work) -> Table:
    """How far from Pillow's the pixels of each loader are; those that do not run are removed."""
    table = Table("How they decode", QUALITY)
    for loader in LOADERS:
        if loader.name not in processes:
            continue
        say(f"{loader.name}: whole pictures beside Pillow's")
        try:
            most, mean = processes[loader.name].ask("differences", probe)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            say(f"{loader.name}: left out, it does not run here ({last}); {loader.install}")
            del processes[loader.name]
            continue
        table.add(loader.name, loader.quality, most, mean)
    return table


def speeds(
    processes: dict[str, LoaderProcess], pictures: Pictures, arguments: argparse.Namespace
) -> Table:
    """All loaders with each number of workers."""
    table = Table("Loaders side by side", SPEED)
    for workers in arguments.workers:
        work = Work(pictures, arguments.size, arguments.batch, workers)
        cold = arguments.cold_rounds if workers == arguments.workers[-1] else 0
        measured = measure(processes, work, arguments.rounds, cold)
        best = next((one.cpu for name, one in measured.items() if name == LOADERS[0].name), None)
        for name, one in measured.items():
            table.add(
                *(name, workers, statistics.median(one.speeds), min(one.speeds), max(one.speeds)),
                *(1e3 * one.cpu, None if best is None else best / one.cpu),
                *(statistics.median(each.first for each in one.passes), one.cold_speed),
                *(one.memory.total / 2**20, one.memory.root / 2**20, one.memory.processes),
            )
    return table


def measure(
    processes: dict[str, LoaderProcess], work: Work, rounds: int, cold_rounds: int
) -> dict[str, Measured]:
    """Epochs of each loader in turn, one of them for its memory, then those from disk."""
    measured = {name: Measured() for name in processes}
    for name, process in processes.items():
        say(f"{name}, {work.workers} workers: an epoch that is not counted, but for its memory")
        process.ask("build", work)
        measured[name].memory = process.ask("memory")
    for number in range(rounds):
        for name, process in processes.items():
            measured[name].passes.append(process.ask("epoch"))
            speed = f"{measured[name].speeds[-1]:,.0f} pictures/s"
            say(f"{name}, {work.workers} workers, round {number + 1}: {speed}")
    every_file = [*work.pictures.every_file(), work.pictures.store]
    for _ in range(cold_rounds):
        for name, process in processes.items():
            for each in processes.values():
                each.ask("unmap", every_file)
            kept = drop_from_page_cache(every_file)
            measured[name].cold.append(process.ask("epoch"))
            say(f"{name}, from disk: {100 * kept:.0f} % were still in memory")
    return measured


def version_of(name: str) -> str:
    """Of a package, empty where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def write(folder: Path, speed: Table, quality: Table, facts: dict[str, str]) -> None:
    """Print both tables; write them as Markdown, and the first as CSV."""
    make_folder(folder)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    path = folder / f"loader-peers-{slug(processor())}-{today}.md"
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    text = f"{speed.markdown()}\n{quality.markdown()}\n" + "\n".join(lines) + "\n"
    write_text(path, text)
    write_text(path.with_name(f"{path.stem}.csv"), speed.csv(facts))
    print(text)
    print(f"written: {path} and .csv")


if __name__ == "__main__":
    main()
