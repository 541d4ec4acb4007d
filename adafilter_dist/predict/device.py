"""Where a model predicts."""

from __future__ import annotations

import torch

from adafilter_dist.errors import UserError


def use_device(wanted: str, threads: int) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a device, torch set up for it; UserError without a GPU.

    ``auto`` is a GPU where there is one.
    """
    torch.set_num_threads(threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    is_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")
