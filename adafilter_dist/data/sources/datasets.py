"""The data sets by name: fetched, listed, reduced to the wanted classes, and split."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adafilter_dist.data.sources import (
    caltech256,
    decathlon,
    fashion_mnist,
    fgvc_aircraft,
    food101,
    imagefolder,
    indoor67,
    mixed_domains,
    stanford_dogs,
)
from adafilter_dist.data.sources.download import Say
from adafilter_dist.data.sources.listing import Listing, Sample, SourceListing, labels_of
from adafilter_dist.data.sources.split import (
    SplitPurpose,
    cut_count,
    cut_fraction,
    require_count,
)
from adafilter_dist.errors import UserError, nearest, printable, unprintable
from adafilter_dist.recipe.sections.data import Data

_FIND = {
    "caltech256": caltech256.find,
    "fashion_mnist": fashion_mnist.find,
    "mixed_domains": mixed_domains.find,
    "fgvc_aircraft": fgvc_aircraft.find,
    "food101": food101.find,
    "imagefolder": imagefolder.find,
    "indoor67": indoor67.find,
    "omniglot": decathlon.find,
    "stanford_dogs": stanford_dogs.find,
    "ucf101": decathlon.find,
}
_FETCH = {
    "caltech256": caltech256.fetch,
    "fashion_mnist": fashion_mnist.fetch,
    "mixed_domains": fashion_mnist.fetch,
    "fgvc_aircraft": fgvc_aircraft.fetch,
    "food101": food101.fetch,
}
FETCHABLE = frozenset(_FETCH)
"""The names of those that can be downloaded."""
_LISTS = {
    "fgvc_aircraft": fgvc_aircraft.lists_of,
    "food101": food101.lists_of,
    "indoor67": indoor67.lists_of,
    "omniglot": decathlon.lists_of,
    "stanford_dogs": stanford_dogs.lists_of,
    "ucf101": decathlon.lists_of,
}
_IS_THERE = {
    "caltech256": caltech256.is_there,
    "fashion_mnist": fashion_mnist.is_there,
    "mixed_domains": fashion_mnist.is_there,
    "fgvc_aircraft": fgvc_aircraft.is_there,
    "food101": food101.is_there,
    "imagefolder": imagefolder.is_there,
    "indoor67": indoor67.is_there,
    "omniglot": decathlon.is_there,
    "stanford_dogs": stanford_dogs.is_there,
    "ucf101": decathlon.is_there,
}
_PAIRS = 3


def fetch_dataset(data: Data, say: Say) -> None:
    """Download what is missing, if ``data.download`` and the data set can be; UserError if not."""
    if can_fetch(data) and not is_there(data):
        _FETCH[data.name](data, say)


def is_there(data: Data) -> bool:
    """Whether its list or any picture of it is there, in whatever state."""
    return _IS_THERE[data.name](data)


def lists_of(data: Data) -> dict[str, Path]:
    """The files that say which pictures belong where, by a name that stays when the root moves."""
    if data.csv is not None:
        return {"data.csv": data.csv}
    return _LISTS[data.name](data) if data.name in _LISTS else {}


def can_fetch(data: Data) -> bool:
    """Whether ``fetch_dataset`` can get it."""
    return data.download and data.name in _FETCH


def list_dataset(data: Data) -> Listing:
    """Classes and the pictures of each split, in an order that depends on names alone.

    The test set is the published one, or drawn first, so that training sets of other sizes leave
    it as it is. With ``data.draw=seed`` the training pictures are all that a run may draw. Raises
    UserError for anything that cannot be trained on.
    """
    # The pictures as they are published or lie in folders, of the wanted classes.
    source = _FIND[data.name](data)
    source = source if data.classes is None else _only(source, data.classes)
    _require_names(source)
    if len(source.classes) < 2:
        raise UserError(
            f"{source.root}: only one class ({', '.join(source.classes)}); at least two are needed"
        )

    # The test set: the published one, the validation split, or pictures drawn from training.
    if data.test_split == "val":
        if not source.validation:
            raise UserError(f"data.test_split=val: {source.root} has no validation split")
        note = (
            f"data.test_split=val: the {len(source.validation)} pictures of val are the test split"
        )
        if source.test:
            note += f", the {len(source.test)} of test are left out"
        notes = [*source.notes, note]
        source = replace(source, test=source.validation, validation=[], notes=notes)
    if data.join_validation:
        source = _joined(source)
    train, test, notes = source.train, source.test, list(source.notes)
    if test is None:
        train, test = _cut_test(source, data)
        if source.validation:
            notes.append(
                "no test split: it is drawn from the training pictures (data.test_fraction, "
                "data.test_per_class); data.test_split=val tests on the validation split instead"
            )
    elif data.test_per_class is not None:
        test = _draw(
            test, data.test_per_class, SplitPurpose.TEST, source, data, "data.test_per_class"
        )

    # The training set, of which every class must have pictures.
    _require_every_class(source, train)
    if not test:
        raise UserError(
            f"{source.root}: no test pictures; add some, or have them cut off (data.test_fraction)"
        )
    if data.train_per_class is not None and data.draw == "seed":
        key = "data.train_per_class"
        require_count(labels_of(train), data.train_per_class, source.classes, key)
    elif data.train_per_class is not None:
        train = _draw(
            train, data.train_per_class, SplitPurpose.TRAIN, source, data, "data.train_per_class"
        )

    # What a reader of the summary should know.
    notes += _alike(source.classes)
    for name, part in (("test", test), ("validation", source.validation)):
        notes += _missing(source.classes, name, part) if part else []
    return Listing(
        source.root, source.classes, train, test, notes, source.validation, source.domains
    )


def _only(source: SourceListing, wanted: Sequence[str]) -> SourceListing:
    for name in wanted:
        if name not in source.classes:
            raise UserError(
                f"data.classes: {source.root} has no class {name!r}{nearest(name, source.classes)}"
            )
    classes = [name for name in source.classes if name in wanted]
    label = {source.classes.index(name): number for number, name in enumerate(classes)}

    def reduce(samples: Iterable[Sample]) -> list[Sample]:
        return [
            replace(sample, label=label[sample.label])
            for sample in samples
            if sample.label in label
        ]

    test = None if source.test is None else reduce(source.test)
    return replace(
        source,
        classes=classes,
        train=reduce(source.train),
        test=test,
        validation=reduce(source.validation),
    )


def _joined(source: SourceListing) -> SourceListing:
    """With the validation split among the training pictures."""
    if not source.validation:
        raise UserError(f"data.join_validation=true: {source.root} has no validation split")
    train = sorted([*source.train, *source.validation], key=lambda s: (s.label, s.name))
    note = (
        f"data.join_validation=true: the {len(source.validation):,} pictures of the validation "
        f"split are training pictures, {len(train):,} in all; data.val_fraction of them is "
        "validation"
    )
    return replace(source, train=train, validation=[], notes=[*source.notes, note])


def _cut_test(source: SourceListing, data: Data) -> tuple[list[Sample], list[Sample]]:
    pool, seed = labels_of(source.train), data.split_seed
    if data.test_per_class is not None:
        rest, part = cut_count(
            pool,
            data.test_per_class,
            seed,
            SplitPurpose.TEST,
            source.classes,
            "data.test_per_class",
        )
    else:
        rest, part = cut_fraction(pool, data.test_fraction, seed, SplitPurpose.TEST)
    return [source.train[i] for i in rest], [source.train[i] for i in part]


def _require_names(source: SourceListing) -> None:
    """Names of classes go into manifests, exports and tables."""
    if unprintable(str(source.root)):
        raise UserError(
            f"data.root={printable(source.root)}: the path {unprintable(str(source.root))}; "
            "rename it"
        )
    for name in source.classes:
        if unprintable(name):
            raise UserError(
                f"{source.root}: the name of the class {printable(name)} {unprintable(name)}; "
                "rename it, or leave it out with data.classes"
            )


def _alike(classes: Sequence[str]) -> list[str]:
    """A note on classes that are one word in two spellings."""
    known: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for name in classes:
        word = unicodedata.normalize("NFKC", name).casefold().strip()
        twin = known.setdefault(word, name)
        if twin != name:
            pairs.append((twin, name))
    if not pairs:
        return []
    named = [f"{twin!r} and {name!r}" for twin, name in pairs[:_PAIRS]]
    more = f", and {len(pairs) - _PAIRS} more pairs," if len(pairs) > _PAIRS else ""
    return [
        f"the classes {', '.join(named)}{more} differ in capitals, blanks or Unicode form alone; "
        "they are kept apart"
    ]


def _missing(classes: Sequence[str], split: str, samples: Sequence[Sample]) -> list[str]:
    """A note on classes without a picture in a split."""
    counts = np.bincount(labels_of(samples), minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if not absent:
        return []
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return [f"no {split} pictures of class {absent[0]!r}{more}"]


def _draw(
    samples: list[Sample],
    count: int,
    purpose: SplitPurpose,
    source: SourceListing,
    data: Data,
    key: str,
) -> list[Sample]:
    _, part = cut_count(labels_of(samples), count, data.split_seed, purpose, source.classes, key)
    return [samples[i] for i in part]


def _require_every_class(source: SourceListing, train: Sequence[Sample]) -> None:
    counts = np.bincount(labels_of(train), minlength=len(source.classes))
    empty = [name for name, count in zip(source.classes, counts, strict=True) if count == 0]
    if empty:
        raise UserError(
            f"{source.root}: no training pictures of class {empty[0]!r}"
            + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
            + "; add some, or name the classes to use with data.classes"
        )
