"""The learning rate as a function of the step and nothing else."""

from __future__ import annotations

import math

from adafilter_dist.recipe.sections.training import Optim


def lr_factor(optim: Optim, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """What every base rate is multiplied by at ``step`` (0-based).

    Linear warm-up over ``warmup_epochs``, then cosine to zero over the remaining steps, a factor
    ``step_gamma`` after each of ``step_epochs``, or constant. With ``schedule_epochs`` it has that
    length instead of ``total_steps``, and afterwards the rate of its last step is held.
    """
    if optim.schedule_epochs is not None:
        total_steps = optim.schedule_epochs * steps_per_epoch
        step = min(step, total_steps - 1)
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
    if optim.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in optim.step_epochs)
        return float(optim.step_gamma**passed)
    return 1.0
