"""Several micro-batches in one forward: what is taken over samples is taken in each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Groups:
    """Into how many equal micro-batches the samples of a forward fall, and who draws for each.

    Without generators of their own all draw from torch's default one.
    """

    count: int = 1
    generators: Sequence[torch.Generator] = ()

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


forward = Groups()
"""That of the forward which runs now: BatchNorm, gate, estimators and penalty look at it."""


@contextmanager
def grouped(count: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Inside, the samples of a forward are ``count`` micro-batches, one after the other.

    ``generators``, one for each, draw the noise of the gates.
    """
    before = forward.count, forward.generators
    forward.count, forward.generators = count, generators
    try:
        yield
    finally:
        forward.count, forward.generators = before


def draw(draws: Callable[..., Tensor], like: Tensor, columns: int | None = None) -> Tensor:
    """`torch.rand` or `torch.randn` of the shape of like (N, C), or (N, columns).

    Each micro-batch gets what it would have got in a forward of its own.
    """
    width = like.shape[1] if columns is None else columns
    if forward.generators:
        return _draw_each(draws, like, width)
    return draws(len(like), width, dtype=like.dtype, device=like.device)


# A compiled graph cannot hold a generator: it is left here, and entered again behind.
@torch.compiler.disable
def _draw_each(draws: Callable[..., Tensor], like: Tensor, width: int) -> Tensor:
    parts = [
        draws(len(part), width, generator=generator, dtype=like.dtype, device=like.device)
        for part, generator in zip(forward.split(like), forward.generators, strict=True)
    ]
    return torch.cat(parts)
