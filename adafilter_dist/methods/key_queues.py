"""Queues of keys, one a class: each takes the keys of a step in the order of its micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.models.gating import micro_batches


class KeyQueues(nn.Module):
    """The last `size` keys of each class, in `keys` (classes, size, width).

    They begin as random unit vectors. A step's keys wait in `waiting` (pictures of a global batch,
    width + 2), each in its picture's row with its label and a 1 behind it, zeros where the picture
    is another rank's. So the sum over the ranks is the same for any number of them.
    """

    keys: Tensor
    places: Tensor
    waiting: Tensor

    def __init__(
        self, classes: int, size: int, width: int, pictures: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        drawn = torch.randn(classes, size, width, generator=generator)
        self.register_buffer("keys", functional.normalize(drawn, dim=2))
        # Where each class puts its next key.
        self.register_buffer("places", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("waiting", torch.zeros(pictures, width + 2), persistent=False)

    @torch.no_grad()
    def add(self, keys: Tensor, labels: Tensor) -> None:
        """Let the keys (N, width) of this forward wait, in the rows of its micro-batches."""
        keys, labels = keys.to(self.waiting.dtype), labels.to(self.waiting.dtype)
        rows = torch.cat([keys, labels[:, None], torch.ones_like(labels)[:, None]], 1)
        parts = micro_batches.current.split(rows)
        for number, part in zip(micro_batches.current.numbers, parts, strict=True):
            self.waiting[number * len(part) : (number + 1) * len(part)] = part

    @torch.no_grad()
    def take(self, rows: Tensor) -> None:
        """Put the keys of a step, `waiting` summed over the ranks times any factor, in the queues.

        Where a class has more than `size` of them, the last ones stay.
        """
        classes, size, width = self.keys.shape
        rows = rows.view_as(self.waiting)
        factor = rows[:, -1:]
        filled = factor[:, 0] > 0
        rows = rows / torch.where(factor > 0, factor, torch.ones_like(factor))
        labels = rows[:, -2].round().long()

        # How many of its class come before each picture, and how many after it.
        own = functional.one_hot(labels, classes) * filled[:, None]
        counts = own.sum(0)
        before = (own.cumsum(0) * own).sum(1) - 1
        after = counts[labels] - 1 - before

        # What is not to stay goes to a row behind all queues. (A mask would wait for a GPU.)
        place = labels * size + (self.places[labels] + before) % size
        place = torch.where(filled & (after < size), place, classes * size)
        spare = self.keys.new_zeros(1, width)
        queues = torch.cat([self.keys.flatten(0, 1), spare]).index_copy_(0, place, rows[:, :width])
        self.keys.copy_(queues[:-1].view_as(self.keys))
        self.places.copy_((self.places + counts) % size)
        self.clear()

    def clear(self) -> None:
        """Forget what waits."""
        self.waiting.zero_()
