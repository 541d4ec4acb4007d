"""The order in which ranks read samples: pure functions of the seed, the epoch and the sizes.

Nothing here knows about files, workers or what was read before, so any rank of any world size can
say from scratch what comes next, in the middle of an epoch too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.loading.keyed import Purpose, permutation
from adafilter_dist.errors import UserError


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """Permutation of ``range(samples)`` for one epoch."""
    return permutation(Purpose.ORDER, seed, epoch, count=samples)


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; UserError if there is none."""
    steps = samples // global_batch
    if steps == 0:
        raise UserError(
            f"train.global_batch={global_batch} is larger than the training split of {samples} "
            f"samples; set it to a multiple of train.micro_batch, at most {samples}"
        )
    return steps


def micro_batches_of_rank(micro_batches: int, rank: int, world_size: int) -> range:
    """Micro-batches of a global batch that a rank computes.

    Contiguous; ranks differ by one at most. ValueError if there are more ranks than micro-batches:
    `require_shares` of `adafilter_dist.recipe.shares` tells the user of it before.
    """
    if not 0 <= rank < world_size <= micro_batches:
        raise ValueError(f"rank {rank} of {world_size}, for {micro_batches} micro-batches")
    first = rank * micro_batches // world_size
    return range(first, (rank + 1) * micro_batches // world_size)


def rank_order(
    seed: int,
    epoch: int,
    samples: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world_size: int,
    first_step: int = 0,
) -> NDArray[np.int64]:
    """Positions that a rank reads from ``first_step`` to the end of the epoch.

    Shape (steps, micro-batches of this rank, micro_batch). The tail of the epoch's order that fills
    no global batch is dropped: another one each epoch.
    """
    steps = steps_per_epoch(samples, global_batch)
    if not 0 <= first_step <= steps:
        raise ValueError(f"first_step {first_step} of an epoch of {steps} steps")
    micro_batches = global_batch // micro_batch
    mine = micro_batches_of_rank(micro_batches, rank, world_size)
    order = epoch_order(seed, epoch, samples)[first_step * global_batch : steps * global_batch]
    steps_left = steps - first_step
    return order.reshape(steps_left, micro_batches, micro_batch)[:, mine.start : mine.stop]


def batch_share(samples: int, batch_size: int, rank: int, world_size: int) -> range:
    """Batches that a rank evaluates: each batch in exactly one rank, the last one short."""
    batches = -(-samples // batch_size)
    return range(rank * batches // world_size, (rank + 1) * batches // world_size)
