"""What every test shares: quiet cores, no skips in CI."""

from __future__ import annotations

import os
import shutil

import pytest

# Before torch is imported: tests run side by side and start processes; each has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester", "tests.no_skips", "tests.cluster.summary"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless -m names it."""
    if "long" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long") is not None]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def strace() -> None:
    """What records or breaks the system calls of a program is there."""
    if shutil.which("strace") is None:
        pytest.skip("system calls are watched by strace: apt-get install strace")
