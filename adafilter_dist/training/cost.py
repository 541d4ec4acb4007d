"""What a run cost: time and memory of a step, and how many parameters it trains."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adafilter_dist.report.results import RunCost
from adafilter_dist.training.session import Session


class StepClock:
    """Adds up time and CPU time of the training steps of this attempt, without validation."""

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = 0.0
        self._cpu_seconds = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step; one that raises is not counted."""
        began, cpu_began = time.monotonic(), time.process_time()
        yield
        self._steps += 1
        self._seconds += time.monotonic() - began
        self._cpu_seconds += time.process_time() - cpu_began

    def cost(self, session: Session) -> RunCost:
        """The cost so far on this rank."""
        trained = [p for p in session.trainable.model.parameters() if p.requires_grad]
        device = session.world.device
        steps = self._steps
        return RunCost(
            # Under ZeRO-3 a rank holds a part of each.
            trained_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in trained),
            steps=steps,
            step_seconds=self._seconds / steps if steps else None,
            step_cpu_seconds=self._cpu_seconds / steps if steps else None,
            peak_memory=peak_memory(device),
            memory_of="device" if device.type == "cuda" else "process",
        )


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has had allocated on a GPU, else the most that the process had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
