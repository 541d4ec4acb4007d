"""`adafilter prepare` from a thousand pictures to a million: speed, and memory of all processes.

    python benchmarks/prepare.py                        # 1,000 and 10,000, as large as Food-101's
    python benchmarks/prepare.py --small 10000 1000000  # small pictures: what a record costs

The pictures are a few hundred made-up ones, as hard to decode as photographs, and hard links to
them. Small pictures (40 px, stored at 32) cost little to decode, so that the rest is seen. Then a
run's start on these records: opening the store, drawing the splits, the order of an epoch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.loader_pictures import picture
from bench.process_tree import cpu_seconds, watched
from bench.reporting import Column, Table
from PIL import Image

from adafilter_dist.data.loading.order import rank_order
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.recipe import load_recipe

DISTINCT = 200  # a file can have 65,000 names on the usual disks
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
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--scratch", type=Path, help="where to write; by default as tempfile has it"
    )
    options = parser.parse_args()
    print(f"command: {shlex.join(['python', *sys.argv])}\n")
    table, start = Table("adafilter prepare", COLUMNS), Table("Start of a run", START)
    for name, side, stored, counts in (
        ("512 px", 512, 256, options.food),
        ("40 px", 40, 32, options.small),
    ):
        for count in counts:
            with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
                root = Path(scratch)
                make_up(root, count, side)
                words = words_of(root, stored, options.workers)
                table.add(name, count, *prepare(words, count), size_of(root))
                if name == "40 px":
                    start.add(count, *start_of_a_run(words))
            table.print_markdown()
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
        pixels = picture(number, 3 * side // 4 if number % 2 else side)[:side, :side]
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
