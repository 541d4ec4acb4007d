"""The smallest Triton kernel, which shows whether one can be compiled and launched here."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _count(out, size: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out + tl.arange(0, size), tl.arange(0, size))


def launch(device: torch.device) -> None:
    """Compile and launch it; raises what Triton raises."""
    out = torch.full((16,), -1, dtype=torch.int32, device=device)
    _count[(1,)](out, size=16)
    if out.tolist() != list(range(16)):
        raise RuntimeError("its first kernel computes something else")
