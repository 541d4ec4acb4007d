"""What every test shares: quiet cores, no skips in CI."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.launch.recorded import Cluster

# Before torch is imported: tests run side by side and start processes; each has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What compiles would start a process for it, which imports torch first and has no core of its own.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# A shell starts what it puts in the background with SIGINT ignored, and so would be all that tests
# start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["pytester", "tests.no_skips", "tests.longest", "tests.cluster.summary"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in what is imported and collected: all of it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish() -> None:
    """As it was: libraries that count what they leave behind at the end would complain."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless -m names it."""
    if "long" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long") is not None]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_runtest_setup() -> None:
    """One thread again, where the test before has trained with more and left them.

    Tests run side by side: threads that wait for each other's turn on a core take its time.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def strace() -> None:
    """What records or breaks the system calls of a program is there."""
    if shutil.which("strace") is None:
        pytest.skip("system calls are watched by strace: apt-get install strace")


@pytest.fixture(scope="session")
def path_without_slurm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH without the programs of SLURM; what else lies in their folders stays."""
    links = tmp_path_factory.mktemp("without-slurm")
    kept = [str(links)]
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        if not (folder / "sbatch").exists():
            kept.append(str(folder))
            continue
        for program in folder.iterdir():
            link = links / program.name
            if program.name not in _SLURM and not link.exists():
                link.symlink_to(program)
    return os.pathsep.join(kept)


@pytest.fixture
def no_slurm(path_without_slurm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A machine on which no program of SLURM is found, until the test puts it there."""
    cluster = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{cluster.folder}{os.pathsep}{path_without_slurm}")
    return cluster


_SLURM = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel", "sinfo")
