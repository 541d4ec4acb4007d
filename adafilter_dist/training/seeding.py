"""Random draws in the model as a function of (seed, step, micro-batch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from adafilter_dist.models.gating.micro_batches import in_micro_batches


@contextmanager
def seeded_draws(
    seed: int,
    step: int,
    micro_batches: Sequence[int],
    device: torch.device,
    own: Sequence[torch.Generator] = (),
) -> Iterator[None]:
    """Seed torch's default generators from (seed, step, micro-batch); restore them at the end.

    So gate noise, dropout and stochastic depth do not depend on rank, world size or history. If
    a forward holds several micro-batches, each has its own generator, used by the gates only; one
    of ``own`` where there are some, because a recorded forward draws from the same ones each time.
    """
    keys = [_key(seed, step, micro_batch) for micro_batch in micro_batches]
    devices = [device.index] if device.type == "cuda" else []
    generators = []
    if len(keys) > 1:
        own = own or [torch.Generator(device) for _ in keys]
        generators = [one.manual_seed(key) for one, key in zip(own, keys, strict=True)]
    with (
        torch.random.fork_rng(devices=devices),
        in_micro_batches(len(keys), generators, micro_batches),
    ):
        # Not torch.manual_seed: without a GPU it keeps each call, and a traceback, for a later one.
        torch.default_generator.manual_seed(keys[0])
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(keys[0])
        yield


def _key(seed: int, step: int, micro_batch: int) -> int:
    sequence = np.random.SeedSequence([seed, step, micro_batch])
    return int(sequence.generate_state(1, np.uint64)[0])
