"""How an out-of-memory error is known, whichever library raises it, and its memory given back."""

from __future__ import annotations

import re

import torch

from adafilter_dist.models.gating.gate import RecurrentGate

# How libraries below torch word an out-of-memory error, in a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory"  # torch on a CPU
    r"|could not create a primitive$"  # oneDNN; what it cannot do at all is "... descriptor ..."
    r"|CUDA (driver )?error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"
    r"|Triton Error \[CUDA\]: out of memory"
    r"|NCCL(.|\n)*(out of memory|Failed to CUDA (calloc|malloc))"
)
# What these say where their workspace does not fit, but elsewhere, too: it counts if a GPU is full.
_IF_FULL = re.compile(
    r"CUBLAS_STATUS_NOT_INITIALIZED"
    r"|CUBLAS_STATUS_INTERNAL_ERROR"
    r"|CUDNN_STATUS_NOT_INITIALIZED"
    r"|[Uu]nable to find an engine to execute|[Uu]nable to find a valid cuDNN algorithm"
    r"|ncclUnhandledCudaError|NCCL(.|\n)*unhandled cuda error"
)
_FULL = 512 * 2**20  # free bytes below which a GPU is


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    words = str(error)
    if _OUT_OF_MEMORY.search(words):
        return True
    return _IF_FULL.search(words) is not None and gpu_is_full()


def gpu_is_full() -> bool:
    """Whether next to nothing is free on the GPU in use, beside what torch keeps in store."""
    if not torch.cuda.is_initialized():
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # after some errors a GPU answers nothing any more
        return False
    return free < _FULL


def release(gate: RecurrentGate | None, error: BaseException) -> None:
    """Free every activation of the forward that ``error`` ended, by dropping its traceback."""
    error.__traceback__ = None  # traceback.clear_frames leaves what frames hold besides variables
    if gate is not None:
        gate.discard()
