"""Whether layers take the code path of a GPU."""

from __future__ import annotations

from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether what follows from x is computed on a GPU.

    Asked as `device_kind.on_gpu`, so that a benchmark of the host's work can answer for a GPU that
    is not there.
    """
    return x.is_cuda
