"""A setting of OpenMP, which torch reads when it is imported. Imports no torch."""

from __future__ import annotations

import os


def set_wait_policy() -> None:
    """Let threads that wait for each other sleep, unless the user has decided. Before torch.

    Threads that spin starve one another as soon as anything else runs on the same cores, and a step
    then takes ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
