"""The table of loaders, in small, with those that are installed."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.disk import SlowDisk, drop_from_page_cache, has_mapped, unmap
from bench.process_tree import cpu_seconds, memory_bytes, read_bytes

from tests.benchmarks.conftest import BENCHMARKS


@pytest.mark.slow
def test_a_quick_table(tmp_path: Path) -> None:
    chosen = ("ours, numba", "ImageFolder", "WebDataset", "SPDL")
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
    speeds = {row[0]: row for row in rows if len(row) == 14}
    quality = {row[0]: row for row in rows if len(row) == 6}
    for name in ("ours, numba", "ours, numba, raw", "ImageFolder, Pillow"):
        assert all(float(speeds[name][column].replace(",", "")) > 0 for column in (2, 5, 8, 11))
    # Pillow beside itself; ours on the pixels of the JPEGs, which are the same.
    assert quality["ImageFolder, Pillow"][4:] == ["0", "0.00"]
    assert quality["ours, numba, raw"][4:] == quality["ours, numba"][4:]
    assert speeds["ours, numba"][13] == "1" and speeds["ImageFolder, Pillow"][13] != "1"
    # A peer that is not there has one line, which installs it.
    for name, install in (("WebDataset, Pillow", "webdataset"), ("SPDL, threads", "spdl")):
        if name not in speeds:
            assert f"pip install {install}" in quality[name][3]


@pytest.mark.slow
def test_the_start_of_epochs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "loader_table.py"), "--only", "ours, numba"]
    words = ["--starts", "600", "--batch", "16", "--workers", "1"]
    ended = subprocess.run(
        [*command, *words, "--out", str(tmp_path), "--scratch", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    (page,) = tmp_path.glob("loader-starts-*.md")
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith("| ours")]
    assert [row[2].strip() for row in rows] == ["600"]
    assert all(row[9].strip() == "1" and float(row[6]) > 0 for row in rows)  # a file, read


def test_files_are_dropped_from_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = read_bytes()
        assert sum(mapped[:: mmap.PAGESIZE]) and read_bytes() == before
        # What is mapped and was touched stays, until it is unmapped.
        assert drop_from_page_cache([file]) > 0.5
        assert not has_mapped(os.getpid(), tmp_path)  # the signal is not caught
        unmap(tmp_path)
        assert drop_from_page_cache([file]) < 0.5
        assert sum(mapped[:: mmap.PAGESIZE]) and read_bytes() > before


@pytest.mark.may_skip("needs root and cgroups of version 1")
def test_a_slow_disk_is_slow_for_the_chosen_alone(tmp_path: Path) -> None:
    if missing := SlowDisk.missing():
        pytest.skip(missing)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    group = Path(f"/proc/{child.pid}/cgroup")
    own, before = Path("/proc/self/cgroup").read_text(), group.read_text()
    with SlowDisk(tmp_path, 3, 100).holding([child.pid]):
        (line,) = (line for line in group.read_text().splitlines() if "blkio" in line)
        folder = Path("/sys/fs/cgroup/blkio") / line.split(":", 2)[2].lstrip("/")
        assert (folder / "blkio.throttle.read_bps_device").read_text().split()[1] == "3000000"
        assert Path("/proc/self/cgroup").read_text() == own
    assert group.read_text() == before and not folder.exists()
    child.communicate()


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
