"""`adafilter prepare` from a thousand pictures to a million: speed, and memory of all processes.

    python benchmarks/prepare.py                        # 1,000 and 10,000, as large as Food-101's
    python benchmarks/prepare.py --food 101000 --killed # as many as Food-101, and killed half-way
    python benchmarks/prepare.py --small 10000 1000000  # small pictures: what a record costs

The pictures are 500 made-up ones with the spectrum of photographs, 50 kB on average, and hard
links to them. Small pictures (40 px, stored at 32) cost little to decode, so that the rest is seen.
Then a run's start on these records: opening the store, drawing the splits, the order of an epoch.

--killed: the command runs again, is ended by `kill -9` when half of the training pictures are
stored, and is repeated; the files of both must be the same to the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.loader_pictures import photograph
from bench.process_tree import cpu_seconds, watched
from bench.reporting import Column, Table
from PIL import Image

from adafilter_dist.data.loading.order import rank_order
from adafilter_dist.data.prepare.journal import ENTRY_BYTES
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.recipe import load_recipe

DISTINCT = 500  # a file can have 65,000 names on the usual disks
CLASSES = 101
COLUMNS = [
    Column("pictures"),
    Column("records", 0),
    Column("seconds", 0),
    Column("CPU seconds", 1),
    Column("pictures a CPU second", 0),
    Column("peak memory, MiB", 0),
    Column("stored, MiB", 0),
]
KILLED = [
    Column("pictures"),
    Column("records", 0),
    Column("stored when killed", 0),
    Column("CPU seconds of the rest", 1),
    Column("pictures a CPU second", 0),
    Column("peak memory, MiB", 0),
    Column("the same bytes"),
]
START = [
    Column("records", 0),
    Column("open, CPU ms", 1),
    Column("splits, CPU ms", 1),
    Column("order of an epoch, CPU ms", 1),
    Column("peak memory of all that, bytes a record", 0),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--food", type=int, nargs="*", default=[1000, 10_000], help="of 512 px")
    parser.add_argument("--small", type=int, nargs="*", default=[], help="of 40 px")
    parser.add_argument("--stored-size", type=int, default=256, help="of those of 512 px (256)")
    parser.add_argument("--killed", action="store_true", help="also killed half-way")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--scratch", type=Path, help="where to write; by default as tempfile has it"
    )
    options = parser.parse_args()
    print(f"command: {shlex.join(['python', *sys.argv])}\n")
    table, start = Table("adafilter prepare", COLUMNS), Table("Start of a run", START)
    killed = Table("Killed half-way, and gone on", KILLED)
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    for side, stored, counts in (
        (512, options.stored_size, options.food),
        (40, 32, options.small),
    ):
        name = f"{side} px, stored at {stored}"
        for count in counts:
            with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
                root = Path(scratch)
                make_up(root, count, side)
                words = words_of(root, stored, options.workers)
                table.add(name, count, *prepare(words, count), size_of(root))
                table.print_markdown()
                if side == 40:
                    start.add(count, *start_of_a_run(words))
                if options.killed:
                    killed.add(name, count, *killed_half_way(root, words, count))
                    killed.print_markdown()
    if start.rows:
        start.print_markdown()


def words_of(root: Path, stored: int, workers: int) -> list[str]:
    """The recipe's words; every tenth picture is for testing."""
    keys = [f"data.root={root}", f"data.stored_size={stored}", f"data.num_workers={workers}"]
    return ["recipe=imagefolder", *keys, "data.test_fraction=0.1", "model.weights=null"]


def make_up(root: Path, count: int, side: int) -> None:
    """``count`` names of JPEGs with a longest side of ``side``, as Food-101 has them."""
    originals = root / ".originals"
    originals.mkdir()
    for number in range(min(DISTINCT, count)):
        # Food-101: the longest side is 512, most are square or 4 to 3; quality 90 or so.
        pixels = photograph(number, 3 * side // 4 if number % 2 else side, side)
        Image.fromarray(pixels).save(originals / f"{number}.jpg", quality=90)
    for label in range(CLASSES):
        (root / f"class {label:03}").mkdir()
    for number in range(count):
        link = root / f"class {number % CLASSES:03}" / f"{number:07}.jpg"
        os.link(originals / f"{number % DISTINCT}.jpg", link)


def prepare(words: list[str], count: int) -> tuple[float, float, float, float]:
    """Seconds, CPU seconds, pictures a CPU second, peak memory in MiB, of the command."""
    began, before = time.monotonic(), cpu_seconds()
    command = [sys.executable, "-m", "adafilter_dist", "prepare", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with watched(process.pid) as peak:
        assert process.stdout is not None
        output = process.stdout.read().decode()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if process.wait():
        raise SystemExit(output)
    cpu = cpu_seconds() - before
    return time.monotonic() - began, cpu, count / cpu, peak.total / 2**20


def killed_half_way(
    root: Path, words: list[str], count: int
) -> tuple[float, float, float, float, str]:
    """How many were stored when it was killed; of the rest CPU seconds, a CPU second, peak MiB."""
    (folder,) = root.glob("adafilter-*")
    before = {path.name: digest(path) for path in folder.glob("*.beton")}
    shutil.rmtree(folder)
    command = [sys.executable, "-m", "adafilter_dist", "prepare", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    half = 9 * count // 20 * ENTRY_BYTES  # nine of ten are training pictures
    while sum(path.stat().st_size for path in root.glob(".*/train.*journal")) < half:
        if process.poll() is not None:
            raise SystemExit(f"prepare ended by itself: {process.returncode}")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stored = sum(path.stat().st_size for path in root.glob(".*/*journal")) // ENTRY_BYTES
    _, cpu, _, memory = prepare(words, count)
    same = before == {path.name: digest(path) for path in folder.glob("*.beton")}
    return stored, cpu, (count - stored) / cpu, memory, "yes" if same else "NO"


def digest(path: Path) -> str:
    """A hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(root: Path) -> float:
    """MiB of what was prepared."""
    return sum(path.stat().st_size for path in root.glob("adafilter-*/*")) / 2**20


def start_of_a_run(words: list[str]) -> tuple[float, float, float, float]:
    """What a process does before its first batch, in one of its own."""
    completed = subprocess.run(
        [sys.executable, __file__, "--start-of", *words], check=True, capture_output=True, text=True
    )
    opened, split, order, memory = map(float, completed.stdout.split()[-4:])
    return opened, split, order, memory


def measure_start(words: list[str]) -> None:
    """CPU milliseconds of each part, and the bytes a record that all of it took at most."""
    recipe = load_recipe(words)
    rank_order(0, 0, 128, 128, 32, 0, 1)  # once, for what numpy loads
    times = [time.process_time()]
    with watched() as peak:
        peak.look()
        before = peak.total
        prepared = open_prepared(recipe)
        times.append(time.process_time())
        _, records, labels = prepared.split("train")
        prepared.split("val")
        times.append(time.process_time())
        order = rank_order(0, 1, len(records), 128, 32, 0, 1)
        times.append(time.process_time())
        peak.look()
    del labels, order
    parts = np.diff(times) * 1e3
    print(*parts, (peak.total - before) / len(prepared.train_labels))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start-of"]:
        measure_start(sys.argv[2:])
    else:
        main()
