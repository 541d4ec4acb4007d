"""The data sets by name: fetched, listed, reduced to the wanted classes, and split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from adafilter_dist.data.listing import Found, Listing, Sample
from adafilter_dist.data.sources import caltech256, fashion_mnist, food101, imagefolder
from adafilter_dist.data.sources.download import Say
from adafilter_dist.data.split import Indices, Purpose, cut_count, cut_fraction
from adafilter_dist.errors import UserError, nearest
from adafilter_dist.recipe.schema import Data

_FIND = {
    "caltech256": caltech256.find,
    "fashion_mnist": fashion_mnist.find,
    "food101": food101.find,
    "imagefolder": imagefolder.find,
}
_FETCH = {
    "caltech256": caltech256.fetch,
    "fashion_mnist": fashion_mnist.fetch,
    "food101": food101.fetch,
}


def fetch_dataset(data: Data, say: Say) -> None:
    """Download what is missing, if ``data.download`` and the data set can be; UserError if not."""
    if data.download and data.name in _FETCH:
        _FETCH[data.name](data, say)


def list_dataset(data: Data) -> Listing:
    """Classes and the pictures of each split, in an order that depends on names alone.

    The test set is the published one, or drawn first, so that training sets of other sizes leave
    it as it is. Raises UserError for anything that cannot be trained on.
    """
    found = _FIND[data.name](data)
    found = found if data.classes is None else _only(found, data.classes)
    if len(found.classes) < 2:
        raise UserError(
            f"{found.root}: only one class ({', '.join(found.classes)}); at least two are needed"
        )
    train, test = found.train, found.test
    if test is None:
        train, test = _cut_test(found, data)
    elif data.test_per_class is not None:
        test = _draw(test, data.test_per_class, Purpose.TEST, found, data, "data.test_per_class")
    _require_every_class(found, train)
    if not test:
        raise UserError(
            f"{found.root}: no test pictures; add some, or have them cut off (data.test_fraction)"
        )
    if data.train_per_class is not None:
        train = _draw(
            train, data.train_per_class, Purpose.TRAIN, found, data, "data.train_per_class"
        )
    return Listing(found.root, found.classes, train, test, found.notes, found.validation)


def labels_of(samples: Sequence[Sample]) -> Indices:
    """The labels as an int64 array."""
    return np.fromiter((sample.label for sample in samples), np.int64, len(samples))


def _only(found: Found, wanted: Sequence[str]) -> Found:
    for name in wanted:
        if name not in found.classes:
            raise UserError(
                f"data.classes: {found.root} has no class {name!r}{nearest(name, found.classes)}"
            )
    classes = [name for name in found.classes if name in wanted]
    label = {found.classes.index(name): number for number, name in enumerate(classes)}

    def reduce(samples: Iterable[Sample]) -> list[Sample]:
        return [
            Sample(s.name, label[s.label], s.path, s.pixels) for s in samples if s.label in label
        ]

    test = None if found.test is None else reduce(found.test)
    validation = reduce(found.validation)
    return Found(found.root, classes, reduce(found.train), test, found.notes, validation)


def _cut_test(found: Found, data: Data) -> tuple[list[Sample], list[Sample]]:
    pool, seed = labels_of(found.train), data.split_seed
    if data.test_per_class is not None:
        rest, part = cut_count(
            pool, data.test_per_class, seed, Purpose.TEST, found.classes, "data.test_per_class"
        )
    else:
        rest, part = cut_fraction(pool, data.test_fraction, seed, Purpose.TEST)
    return [found.train[i] for i in rest], [found.train[i] for i in part]


def _draw(
    samples: list[Sample], count: int, purpose: Purpose, found: Found, data: Data, key: str
) -> list[Sample]:
    _, part = cut_count(labels_of(samples), count, data.split_seed, purpose, found.classes, key)
    return [samples[i] for i in part]


def _require_every_class(found: Found, train: Sequence[Sample]) -> None:
    counts = np.bincount(labels_of(train), minlength=len(found.classes))
    empty = [name for name, count in zip(found.classes, counts, strict=True) if count == 0]
    if empty:
        raise UserError(
            f"{found.root}: no training pictures of class {empty[0]!r}"
            + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
            + "; add some, or name the classes to use with data.classes"
        )
