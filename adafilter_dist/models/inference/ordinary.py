"""Tensors that outlive a call in inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made inside are as if made outside inference mode, and have no gradients.

    They know when they are written to, and can be written to outside inference mode.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
