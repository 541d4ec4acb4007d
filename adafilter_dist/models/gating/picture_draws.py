"""Random numbers that belong to a picture: the same in any batch, on any rank, in any run.

Evaluation has no step and no micro-batch to key a draw by. Here the pixels are the key.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {torch.float64: torch.int64, torch.float32: torch.int32}
_STEP, _FIRST, _SECOND = (
    value - 2**64 if value >= 2**63 else value
    for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_FRACTION = 53


def uniform_of_pictures(pictures: Tensor, columns: int, seed: int) -> Tensor:
    """Numbers (N, columns) in (0, 1), float64, from the bits of pictures (N, C, H, W) and `seed`.

    A sum of the bits of all pixels, each times an odd number of its position, is mixed by
    SplitMix64 (Steele, Lea, Flood, 2014). Integers wrap around, so that no order of summation and
    no device changes them.
    """
    bits = pictures.detach().contiguous().flatten(1)
    bits = bits.view(_BITS.get(bits.dtype, torch.int16)).to(torch.int64)
    positions = torch.arange(bits.shape[1], device=bits.device)
    keys = (bits * (_mixed(positions * _STEP + seed) | 1)).sum(1, keepdim=True)
    counters = torch.arange(1, columns + 1, device=bits.device) * _STEP
    top = _shifted(_mixed(_mixed(keys + seed) + counters), 64 - _FRACTION)
    return (top.to(torch.float64) + 0.5) * 2.0**-_FRACTION


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shifted to the right without the sign: torch has no unsigned integers to compute with."""
    return (z >> by) & ((1 << (64 - by)) - 1)
