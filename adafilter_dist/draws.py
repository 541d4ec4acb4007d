"""Random draws in the model as a function of (seed, step, micro-batch)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def keyed_draws(seed: int, step: int, micro_batch: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators from the key inside; put them back on the way out.

    So gate noise, dropout and stochastic depth do not depend on rank, world size or history.
    """
    key = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0]
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: without a GPU it keeps each call, and a traceback, for a later one.
        torch.default_generator.manual_seed(int(key))
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(int(key))
        yield
