"""What every test shares: quiet cores, no skips in CI."""

from __future__ import annotations

import os

# Before torch is imported: tests that run side by side share the cores by having one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester", "tests.no_skips"]
