"""What every test shares: quiet cores, no skips in CI."""

from __future__ import annotations

import os

# Before torch is imported: tests run side by side and start processes; each has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester", "tests.no_skips"]
