"""A bug of the real command: rank ``CRASH_RANK`` raises a ValueError as it begins step 4."""

from __future__ import annotations

import os
from typing import Any

from adafilter_dist.training import step


def install() -> None:
    """From now on this process has the bug, if it is that rank."""
    if os.environ["RANK"] != os.environ["CRASH_RANK"]:
        return
    inputs = step.TrainingStep._inputs

    def buggy(self: step.TrainingStep, batch: Any, number: int, *more: Any) -> Any:
        if number >= 4:
            raise ValueError("a bug on one rank")
        return inputs(self, batch, number, *more)

    step.TrainingStep._inputs = buggy  # type: ignore[method-assign]
