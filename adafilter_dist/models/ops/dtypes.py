"""Which dtype computes: that of sums, of weights, and of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and coefficients over values of `dtype`: float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of weights and images for a `train.precision`."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """torch's autocast for a `train.precision` of bf16 or fp16; nothing for the others."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
