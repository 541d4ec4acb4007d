"""The gate's step for few images on a CPU: `gate_cpu.c`, called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from adafilter_dist.models.ops.native import library

# With more images PyTorch's matrix products gain more than starting them costs.
_FEW_IMAGES = 16


@dataclass(frozen=True)
class Step:
    """Weights of one step, (rows, columns) with a bias each; ``into`` None: ``input`` holds it."""

    into: tuple[Tensor, Tensor] | None
    input: tuple[Tensor, Tensor]
    recurrent: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    layer_norm: bool


def can_step(x: Tensor, step: Step) -> bool:
    """Whether `gate_step` does this: few images, float32, channels-last, on a CPU, no gradient."""
    return (
        not torch.compiler.is_exporting()
        and x.device.type == "cpu"
        and x.dtype == step.input[0].dtype == torch.float32
        and 0 < len(x) <= _FEW_IMAGES
        and x.permute(0, 2, 3, 1).is_contiguous()
        and x.numel() > 0
        and not (torch.is_grad_enabled() and x.requires_grad)
        and _kernel() is not None
    )


def gate_step(
    x: Tensor, step: Step, state: tuple[Tensor, Tensor], decide: bool
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """((h, c), logits (N, C_out)) after x (N, C_in, H, W); no logits unless ``decide``.

    The state (h, c), each (N, hidden), is replaced in place. Where `can_step` says so.
    """
    kernel = _kernel()
    assert kernel is not None
    hidden, memory = state
    filters = len(step.out[0])
    logits = torch.empty(len(x), filters) if decide else None

    def places(pair: tuple[Tensor, Tensor] | None) -> tuple[int | None, int | None]:
        return (None, None) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr())

    failed = kernel(
        x.data_ptr(),
        *places(step.into),
        *places(step.input),
        *places(step.recurrent),
        *places(step.out if decide else None),
        hidden.data_ptr(),
        memory.data_ptr(),
        None if logits is None else logits.data_ptr(),
        *(len(x), x.shape[2] * x.shape[3], x.shape[1], hidden.shape[1], filters),
        step.layer_norm,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for a step of the gate")
    return state, logits


@cache
def _kernel() -> Callable[..., int] | None:
    compiled = library(Path(__file__).with_name("gate_cpu.c"))
    if compiled is None:
        return None
    function = compiled.gate_step
    function.argtypes = [ctypes.c_void_p] * 12 + [ctypes.c_int64] * 5 + [ctypes.c_int] * 2
    function.restype = ctypes.c_int
    typed: Callable[..., int] = function
    return typed
