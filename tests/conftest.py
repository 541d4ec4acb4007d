"""What every test shares: quiet cores, no skips in CI."""

from __future__ import annotations

import os
import shutil

import pytest

# Before torch is imported: tests run side by side and start processes; each has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester", "tests.no_skips"]


@pytest.fixture(scope="session")
def strace() -> None:
    """What records or breaks the system calls of a program is there."""
    if shutil.which("strace") is None:
        pytest.skip("system calls are watched by strace: apt-get install strace")
