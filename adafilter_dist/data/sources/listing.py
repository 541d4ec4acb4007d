"""What a data set is before it is stored: named, labelled pictures that can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.sources.split import Indices
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.cache_folder import cache_folder

# Of the folder that `prepare` makes beside the pictures by default.
DEFAULT_NAME = re.compile(r"adafilter-[0-9a-f]{8}")

# What the two bytes of a store can number.
MOST_DOMAINS = 1 << 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture: a file, or pixels taken out of one.

    ``name`` is its path below ``root``, with forward slashes; ``file`` is the path where that is
    another one. ``domain`` indexes the domains of the listing, and is 0 where that has none.
    There may be millions of them, so what they share is kept once: paths are put together.
    """

    name: str
    label: int
    root: Path
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    domain: int = 0
    file: str | None = None

    @property
    def path(self) -> Path:
        """The picture's file, or the one that ``pixels`` were taken out of."""
        return self.root / self.name if self.file is None else Path(self.file)


@dataclass(frozen=True)
class SourceListing:
    """The splits as a data set is published; ``test`` is None if it has no test split.

    ``validation`` holds the data's own validation split, and is empty if there is none; so is
    ``domains``, the names of the domains that the pictures are of.
    """

    root: Path
    classes: list[str]
    train: list[Sample]
    test: list[Sample] | None
    notes: list[str] = field(default_factory=list)
    validation: list[Sample] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """A data set with its splits drawn; labels index ``classes``.

    ``validation`` holds the data's own validation split. Where it is empty, ``Prepared`` cuts one
    from the training pictures (``data.val_fraction``).
    """

    root: Path
    classes: list[str]
    train: list[Sample]
    test: list[Sample]
    notes: list[str]
    validation: list[Sample] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)

    @property
    def train_store(self) -> list[Sample]:
        """What the train store holds: the training pictures, then those of validation."""
        return [*self.train, *self.validation]

    @property
    def all_samples(self) -> list[Sample]:
        """What both stores hold."""
        return [*self.train_store, *self.test]


def labels_of(samples: Sequence[Sample]) -> Indices:
    """The labels as an int64 array."""
    return np.fromiter((sample.label for sample in samples), np.int64, len(samples))


def root_of(data: Data) -> Path:
    """The folder of the pictures: data.root, else the CSV's, else one in the cache folder."""
    if data.root is None and data.csv is not None:
        return data.csv.parent
    name = "fashion_mnist" if data.name == "mixed_domains" else data.name
    return data.root or cache_folder() / name.replace("_", "-")
