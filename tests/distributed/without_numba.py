"""Makes a process one on a node where the compiled loader cannot be used."""

from __future__ import annotations

import sys


def install() -> None:
    """Importing it fails from now on."""
    sys.modules["adafilter_dist.data.loading.numba_backend"] = None  # type: ignore[assignment]
