"""Checkpoints: save whole, verify, find the newest good one, keep k."""

from adafilter_dist.checkpoint.files import DamagedError
from adafilter_dist.checkpoint.store import (
    Checkpoints,
    Loaded,
    NotFiniteError,
    Position,
    check_finite,
)

__all__ = ["Checkpoints", "DamagedError", "Loaded", "NotFiniteError", "Position", "check_finite"]
