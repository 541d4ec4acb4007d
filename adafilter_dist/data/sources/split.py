"""Stratified random splits: pure functions of (labels, seed).

The pictures of a class are put into one random order per (seed, purpose, class), and every split
takes a prefix of it. So draws of different sizes are nested, and what is drawn from one class does
not depend on the others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.errors import UserError

Indices = NDArray[np.int64]
SplitName = Literal["train", "val", "test"]
Sizes = Callable[[int], int]


class SplitPurpose(enum.IntEnum):
    """What a draw is for; each purpose has its own random stream."""

    TEST = 1
    TRAIN = 2
    VAL = 3
    LABELS = 4


def cut_fraction(
    labels: Indices, fraction: float, seed: int, purpose: SplitPurpose
) -> tuple[Indices, Indices]:
    """(rest, part): ``fraction`` of every class goes into the part.

    A class gives its rounded share, but at least one picture where it has two, and never its last
    one. Both results are sorted indices into ``labels``.
    """
    return _cut(labels, lambda n: _share(n, fraction), seed, purpose)


def cut_count(
    labels: Indices, count: int, seed: int, purpose: SplitPurpose, classes: Sequence[str], key: str
) -> tuple[Indices, Indices]:
    """(rest, part): exactly ``count`` pictures of every class go into the part, sorted indices.

    Raises UserError naming the smallest class and ``key`` where a class has fewer.
    """
    require_count(labels, count, classes, key)
    return _cut(labels, lambda n: count, seed, purpose)


def require_count(labels: Indices, count: int, classes: Sequence[str], key: str) -> None:
    """UserError naming the smallest class and ``key`` where one has fewer pictures than that."""
    sizes = np.bincount(labels, minlength=len(classes))
    short = int(sizes.argmin())
    if sizes[short] < count:
        raise UserError(
            f"{key}={count}: class {classes[short]!r} has only {sizes[short]} pictures to draw "
            f"from; use {key}={sizes[short]} or less, or leave classes out with data.classes"
        )


def keep_fraction(labels: Indices, fraction: float, seed: int, purpose: SplitPurpose) -> Indices:
    """Sorted indices of ``fraction`` of every class, rounded, at least one picture of each."""
    _, part = _cut(labels, lambda n: max(1, int(n * fraction + 0.5)), seed, purpose)
    return part


def draw_count(
    labels: Indices, count: int, val_fraction: float, split_seed: int, draw_seed: int
) -> tuple[Indices, Indices]:
    """(train, val) of ``count`` pictures of every class together, sorted indices.

    Validation is ``val_fraction`` of the count, drawn with ``split_seed``; the rest is drawn from
    what is left with ``draw_seed``. So all draws of a size have one validation split.
    """
    share = _share(count, val_fraction)
    rest, val = _cut(labels, lambda n: share, split_seed, SplitPurpose.VAL)
    _, part = _cut(labels[rest], lambda n: count - share, draw_seed, SplitPurpose.TRAIN)
    return rest[part], val


def _share(n: int, fraction: float) -> int:
    if fraction == 0:
        return 0
    return min(max(1, int(n * fraction + 0.5)), n - 1)


def _cut(labels: Indices, size: Sizes, seed: int, purpose: SplitPurpose) -> tuple[Indices, Indices]:
    chosen = np.zeros(len(labels), dtype=bool)
    for members in _shuffled_classes(labels, seed, purpose):
        chosen[members[: size(len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _shuffled_classes(labels: Indices, seed: int, purpose: SplitPurpose) -> Iterator[Indices]:
    by_class = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[by_class], return_index=True)
    for label, members in zip(present, np.split(by_class, starts[1:]), strict=False):
        stream = np.random.Philox(np.random.SeedSequence([seed, purpose, int(label)]))
        # Raw output is the part of numpy's random numbers that no release may change.
        yield members[np.argsort(stream.random_raw(len(members)), kind="stable")]
