"""Turns an out-of-memory error into one line that says what to change."""

from __future__ import annotations

import re

import torch

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.ops.dtypes import autocast
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.training.session import Session, forward_counts

_USABLE = 0.93  # of what is free; the rest is lost in fragments and workspaces
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


def fitting_micro_batch(recipe: Recipe, session: Session | None) -> int | None:
    """The largest usable micro_batch that should fit; None if not even 2 would.

    On CUDA, a forward and backward of few samples are measured. Elsewhere, and if that fails, the
    answer is half of what did not fit, or less.
    """
    train = recipe.train
    limit = train.micro_batch // 2
    if session is not None and session.world.device.type == "cuda":
        measured = _measured_limit(recipe, session)
        if measured is not None and measured >= 2:
            limit = min(measured, train.micro_batch - 1)
    return next((m for m in range(limit, 1, -1) if train.global_batch % m == 0), None)


def _measured_limit(recipe: Recipe, session: Session) -> int | None:
    """How many samples of a forward and backward the GPU holds beside optimizer and weights."""
    if isinstance(recipe.engine, DeepSpeed):
        return None  # its forward is collective, and only this rank may be here
    device = session.world.device
    torch.cuda.empty_cache()
    small, large = 2, 6
    try:
        first, second = (_peak_of_pass(recipe, session, samples) for samples in (small, large))
    except RuntimeError:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    available = _USABLE * (free + torch.cuda.memory_reserved(device))
    per_sample = max(1.0, (second - first) / (large - small))
    # Momentum, and gradients where none were made yet; the measured peak holds the rest.
    trained = [p for p in session.engine.model.parameters() if p.requires_grad]
    later = 2 * sum(p.numel() * p.element_size() for p in trained)
    return int((available - later - (first - small * per_sample)) / per_sample)


def _peak_of_pass(recipe: Recipe, session: Session, samples: int) -> int:
    """Peak bytes of a forward and backward of ``samples`` images of noise, on CUDA.

    It bypasses DDP and its hooks, because the other ranks do not take part. The first pass is not
    counted: in it cuDNN tries algorithms with larger workspaces than it then uses.
    """
    model, device = session.engine.model, session.world.device
    size = session.preprocess.crop
    images = torch.randn(samples, 3, size, size, dtype=session.engine.dtype, device=device)
    if recipe.train.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        with autocast(device, recipe.train.precision):
            total = model(images).float().sum()
        torch.autograd.grad(total, trained, allow_unused=True)
        step_statistics.discard(model)
    return torch.cuda.max_memory_allocated(device)


def explain(
    recipe: Recipe, session: Session | None, where: str, error: BaseException | None = None
) -> UserError:
    """The error to show: what ran out, what would fit, and what changing it means.

    Frees the memory held by the functions that raised ``error``, so that a GPU can be measured.
    """
    if error is not None:
        release(session.trainable.gates if session is not None else None, error)
    train = recipe.train
    together = _together(recipe, session)
    if together > 1:
        return UserError(
            f"out of memory on {where} with {together} micro-batches of {train.micro_batch} in one "
            f"forward; lower train.micro_batches_per_forward: {together // 2} is the next to try, "
            "and the same run goes on with it, as the numbers do not change"
        )
    fitting = fitting_micro_batch(recipe, session)
    if fitting is None:
        return UserError(
            f"out of memory on {where} with micro_batch={train.micro_batch}, and no smaller one "
            f"divides global_batch={train.global_batch}; lower data.resolution"
        )
    return UserError(
        f"out of memory on {where} with micro_batch={train.micro_batch}; "
        f"train.micro_batch={fitting} should fit. The global batch stays "
        f"{train.global_batch}, but batch statistics are then those of {fitting} samples: "
        "another run with other numbers"
    )


def _together(recipe: Recipe, session: Session | None) -> int:
    """The most micro-batches that one forward of this rank takes."""
    if session is None:
        return recipe.train.micro_batches_per_forward
    return max(forward_counts(recipe, session.world))
