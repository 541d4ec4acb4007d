"""Turns an out-of-memory error into one line that says what to change."""

from __future__ import annotations

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.training.forward_size import CudaMeter, peak_of_pass
from adafilter_dist.training.out_of_memory import release
from adafilter_dist.training.session import Session, forward_counts


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
    meter, (small, large) = CudaMeter(session.world.device), (2, 6)
    try:
        first, second = (_peak(recipe, session, meter, samples) for samples in (small, large))
        available = meter.available()
    except RuntimeError:
        return None
    per_sample = max(1.0, (second - first) / (large - small))
    # Momentum, and gradients where none were made yet; the measured peak holds the rest.
    trained = [p for p in session.engine.model.parameters() if p.requires_grad]
    later = 2 * sum(p.numel() * p.element_size() for p in trained)
    return int((available - later - (first - small * per_sample)) / per_sample)


def _peak(recipe: Recipe, session: Session, meter: CudaMeter, samples: int) -> int:
    """Peak bytes of a pass of one micro-batch of so many samples; only this rank takes part."""
    train = recipe.train.model_copy(update={"micro_batch": samples})
    smaller = recipe.model_copy(update={"train": train})
    size = session.preprocess.crop
    return peak_of_pass(
        smaller, session.trainable, session.engine, size, session.world, meter, count=1
    )


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
        return recipe.train.together
    return max(forward_counts(session.recipe, session.world))
