"""Several micro-batches in one forward, each with its own statistics, penalties and draws.

BatchNorm, gate, estimators and penalty take means or draw random numbers over the samples of a
forward. If it holds several micro-batches, they do so for each micro-batch separately, so that the
numbers are the same as in forwards of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class MicroBatches:
    """How many equal micro-batches a forward holds, and each one's random generator and number.

    Without generators all of them draw from torch's default one. `numbers` are their places among
    the micro-batches of the whole step, over all ranks.
    """

    count: int = 1
    generators: Sequence[torch.Generator] = ()
    numbers: Sequence[int] = (0,)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Views of x (N, ...) by micro-batch; ValueError where N is no multiple of the count."""
        if self.count == 1:
            return (x,)
        if len(x) % self.count:
            raise ValueError(f"{len(x)} samples are not {self.count} equal micro-batches")
        return x.split(len(x) // self.count)

    def split_or_none(self, x: Tensor | None) -> tuple[Any, ...]:
        """As `split`; for each micro-batch None where there is no x."""
        return (None,) * self.count if x is None else self.split(x)


current = MicroBatches()
"""The micro-batches of the forward that runs now; BatchNorm, gate and the others read it."""


@contextmanager
def in_micro_batches(
    count: int,
    generators: Sequence[torch.Generator] = (),
    numbers: Sequence[int] | None = None,
) -> Iterator[None]:
    """Inside, the samples of a forward are ``count`` micro-batches, one after the other.

    ``generators``, one for each, draw the noise of the gates. ``numbers`` are their places in the
    step, 0 to count - 1 unless they are named.
    """
    before = current.count, current.generators, current.numbers
    numbers = range(count) if numbers is None else numbers
    current.count, current.generators, current.numbers = count, generators, numbers
    try:
        yield
    finally:
        current.count, current.generators, current.numbers = before


def draw(draws: Callable[..., Tensor], like: Tensor, columns: int | None = None) -> Tensor:
    """`torch.rand` or `torch.randn` of the shape of like (N, C), or (N, columns).

    Each micro-batch gets what it would have got in a forward of its own.
    """
    width = like.shape[1] if columns is None else columns
    if current.generators:
        return _draw_each(draws, like, width)
    return draws(len(like), width, dtype=like.dtype, device=like.device)


# A compiled graph cannot hold a generator, so this runs outside of it.
@torch.compiler.disable
def _draw_each(draws: Callable[..., Tensor], like: Tensor, width: int) -> Tensor:
    parts = [
        draws(len(part), width, generator=generator, dtype=like.dtype, device=like.device)
        for part, generator in zip(current.split(like), current.generators, strict=True)
    ]
    return torch.cat(parts)
