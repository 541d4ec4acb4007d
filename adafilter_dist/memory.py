"""Out of memory, said in one line with a way on."""

from __future__ import annotations

import re

import torch

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.session import Session, forward_counts

# How libraries below torch say it, in a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory"  # torch on a CPU
    r"|could not create a primitive$"  # oneDNN; what it cannot do at all is "... descriptor ..."
    r"|CUDA error: out of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED"
    r"|NCCL(.|\n)*out of memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def fitting_micro_batch(recipe: Recipe, session: Session | None) -> int | None:
    """The largest usable micro_batch that should fit, None if not even 2 would.

    On CUDA from the bytes a sample took at the peak; elsewhere the next smaller one.
    """
    train = recipe.train
    limit = train.micro_batch - 1
    if session is not None and session.world.device.type == "cuda":
        device = session.world.device
        weights = sum(p.numel() * p.element_size() for p in session.engine.model.parameters())
        static = 3 * weights  # weights, gradients, momentum
        peak = torch.cuda.max_memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        per_sample = max(1, peak - static) / (train.micro_batch * _together(recipe, session))
        limit = min(limit, int((0.9 * total - static) / per_sample))
    return next((m for m in range(limit, 1, -1) if train.global_batch % m == 0), None)


def explain(recipe: Recipe, session: Session | None, where: str) -> UserError:
    """The one line: what ran out, what would fit, and what changing it means."""
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
    """Micro-batches that a forward of this rank takes at most."""
    if session is None:
        return recipe.train.micro_batches_per_forward
    return max(forward_counts(recipe, session.world))
