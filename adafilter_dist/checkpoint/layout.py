"""How a checkpoint lies on disk: format, names. Imports no torch."""

from __future__ import annotations

FORMAT = 1
FROZEN_COPIES = ("frozen.0.safetensors", "frozen.1.safetensors")


def folder_name(step: int) -> str:
    """The name of the checkpoint at ``step``; names sort as steps do."""
    return f"step-{step:09d}"
