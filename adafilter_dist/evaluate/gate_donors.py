"""Whose gates each picture gets when gates are permuted: of all pictures, or by group.

A group is a class or a domain. Donors are drawn over the whole data set, not within a batch: stored
sets are sorted by class, and a neighbour's gates would be those of the same class. They depend on
the seed and the groups alone, so any world size gives the same.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Draw = Literal["permuted", "same_class", "other_class", "same_domain", "other_domain"]
Groups = NDArray[np.int64]

NO_DONOR = -1
# Sets this use of the seed apart from every other one; a draw's number sets draws apart.
_STREAM = 0x6A7E
_DRAWS: dict[Draw, tuple[int, ...]] = {
    "permuted": (),
    "same_class": (1,),
    "other_class": (2,),
    "same_domain": (3,),
    "other_domain": (4,),
}


def partners(n: int, seed: int) -> Groups:
    """int64 (n,): whose gates each picture gets; one random cycle, so never its own (n >= 2)."""
    return donors_within(np.zeros(n, dtype=np.int64), seed, "permuted")


def donors_within(groups: Groups, seed: int, draw: Draw) -> Groups:
    """int64 (n,): for each picture another one of its group; one random cycle through each group.

    A picture alone in its group has NO_DONOR.
    """
    order = _generator(seed, draw).permutation(len(groups))
    donors = np.full(len(groups), NO_DONOR, dtype=np.int64)
    for group in np.unique(groups):
        cycle = order[groups[order] == group]
        if len(cycle) > 1:
            donors[cycle] = np.roll(cycle, -1)
    return donors


def donors_across(groups: Groups, seed: int, draw: Draw) -> Groups:
    """int64 (n,): for each picture one of another group, each of these with the same probability.

    Drawn with replacement: where one group holds most pictures there is no permutation. NO_DONOR
    for all where there is one group only.
    """
    n = len(groups)
    order = np.argsort(groups, kind="stable")
    _, first, own, size = np.unique(
        groups[order], return_index=True, return_inverse=True, return_counts=True
    )
    donors = np.full(n, NO_DONOR, dtype=np.int64)
    if len(size) > 1:
        # A place among the pictures of other groups; those of the own group are skipped.
        place = _generator(seed, draw).integers(0, n - size[own])
        place += np.where(place >= first[own], size[own], 0)
        donors[order] = order[place]
    return donors


def _generator(seed: int, draw: Draw) -> np.random.Generator:
    return np.random.Generator(np.random.Philox([seed, _STREAM, *_DRAWS[draw]]))
