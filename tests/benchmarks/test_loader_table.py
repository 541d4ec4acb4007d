"""The table of loaders, in small, with those that are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.loader_process import drop_from_page_cache
from bench.process_tree import cpu_seconds, memory_bytes

from tests.benchmarks.conftest import BENCHMARKS


@pytest.mark.slow
def test_a_quick_table(tmp_path: Path) -> None:
    chosen = ("ours, numba", "torchvision v2, workers anew", "ImageFolder", "WebDataset")
    only = [word for name in chosen for word in ("--only", name)]
    command = [sys.executable, str(BENCHMARKS / "loader_table.py"), "--quick", *only]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path), "--scratch", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    (page,) = tmp_path.glob("loader-peers-*.md")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.read_text().splitlines()
        if line.startswith("|")
    ]
    speeds = {row[0]: row for row in rows if len(row) == 12}
    quality = {row[0]: row for row in rows if len(row) == 4}
    for name in ("ours, numba", "torchvision v2, workers anew", "ImageFolder, Pillow"):
        assert all(float(speeds[name][column].replace(",", "")) > 0 for column in (2, 5, 8, 9))
    # Pillow beside itself.
    assert quality["ImageFolder, Pillow"][2:] == ["0", "0.00"]
    assert speeds["ours, numba"][11] == "1" and speeds["ImageFolder, Pillow"][11] != "1"
    if "WebDataset, Pillow" not in speeds:
        assert "WebDataset, Pillow: not installed; pip install webdataset" in ended.stderr


def test_files_are_dropped_from_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    assert drop_from_page_cache([file]) < 0.5


def test_children_count(tmp_path: Path) -> None:
    before = cpu_seconds()
    work = "sum(range(10**7)); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in memory_bytes() and memory_bytes()[child.pid] > 1 << 20
    alive = cpu_seconds()
    child.communicate(b"\n")
    ended = cpu_seconds()
    assert alive - before >= 0.05 and ended >= alive
