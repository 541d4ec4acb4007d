"""Fashion-MNIST in two domains: half of the pictures as they are, half of them changed.

The first half may be changed, too, in another way.

A task on which choosing filters by picture pays by construction: a network trained on Fashion-MNIST
(`model.name=small_resnet`) is right for the first half as it is, and wrong for the second. Training
pictures come from the 10,000 that this network did not see, a draw for each ``data.split_seed``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.sources import fashion_mnist
from adafilter_dist.data.sources.listing import Sample, SourceListing, labels_of
from adafilter_dist.data.sources.split import SplitPurpose, cut_count
from adafilter_dist.recipe.sections.data import Change, Data

Picture = NDArray[np.uint8]

SOURCE_PICTURES = 50_000
"""The first training pictures are left to the source network."""
_HALF = 5_000
# Of the published test pictures: as they are, changed.
_VALIDATION = (slice(0, 250), slice(250, 500))
_TEST = (slice(1000, 2000), slice(2000, 3000))
_ORIGINAL = "original"

# Where each of the 4 x 4 patches comes from, and what each class is called.
_PATCHES = (3, 10, 11, 7, 6, 13, 8, 9, 4, 5, 2, 1, 15, 12, 14, 0)
_LABELS = (3, 7, 5, 9, 6, 8, 0, 2, 4, 1)


def find(data: Data) -> SourceListing:
    """Both domains, each with a validation and a test split of its own pictures."""
    published = fashion_mnist.find(data)
    assert published.test is not None
    changes = (data.mixed.original_changes, data.mixed.changes)

    # Each domain draws from pictures of its own: its draw is the same whatever the other's size.
    unseen = published.train[SOURCE_PICTURES:]
    counts = {"original_per_class": unseen[:_HALF], "changed_per_class": unseen[_HALF:]}
    original, changed = (
        _draw(pool, getattr(data.mixed, key), data, published.classes, f"data.mixed.{key}")
        for key, pool in counts.items()
    )
    splits = [(original, changed)]
    splits += [(published.test[one], published.test[two]) for one, two in (_VALIDATION, _TEST)]
    train, validation, test = (_both(halves, changes) for halves in splits)
    return SourceListing(
        published.root,
        published.classes,
        train,
        test,
        validation=validation,
        domains=[_name(each) for each in changes] if data.mixed.changes else [],
    )


def _draw(
    pool: list[Sample], count: int, data: Data, classes: Sequence[str], key: str
) -> list[Sample]:
    _, part = cut_count(labels_of(pool), count, data.split_seed, SplitPurpose.TRAIN, classes, key)
    return [pool[position] for position in part]


def _both(halves: Sequence[Sequence[Sample]], changes: Sequence[Sequence[Change]]) -> list[Sample]:
    one_domain = not any(changes)
    return [
        sample if one_domain else _changed(sample, changes[domain], domain)
        for domain, half in enumerate(halves)
        for sample in half
    ]


def _name(changes: Sequence[Change]) -> str:
    return "+".join(changes) or _ORIGINAL


def _changed(sample: Sample, changes: Sequence[Change], domain: int) -> Sample:
    """The sample in a domain; the changes are made in their order."""
    pixels, label = sample.pixels, sample.label
    assert pixels is not None
    for change in changes:
        if change == "relabelled":
            label = _LABELS[label]
        else:
            pixels = np.ascontiguousarray(_CHANGES[change](pixels))
    name = f"{_name(changes)}/{sample.name}"
    return replace(sample, name=name, label=label, pixels=pixels, domain=domain)


def _inverted(picture: Picture) -> Picture:
    return 255 - picture


def _turned(picture: Picture) -> Picture:
    """By 90 degrees, counterclockwise."""
    return np.rot90(picture)


def _shuffled(picture: Picture) -> Picture:
    """Patches of 7 x 7 px in another order, the same for all pictures."""
    patches = picture.reshape(4, 7, 4, 7).swapaxes(1, 2).reshape(16, 7, 7)
    return patches[list(_PATCHES)].reshape(4, 4, 7, 7).swapaxes(1, 2).reshape(28, 28)


def _edges(picture: Picture) -> Picture:
    """Four times the difference from the mean of 3 x 3 px, around middle gray."""
    wide = np.pad(picture.astype(np.float64), 1)
    mean = sum(wide[y : y + 28, x : x + 28] for y in range(3) for x in range(3)) / 9
    edges: Picture = (4 * (picture - mean) + 127.5).clip(0, 255).round().astype(np.uint8)
    return edges


_CHANGES: dict[Change, Callable[[Picture], Picture]] = {
    "inverted": _inverted,
    "turned": _turned,
    "shuffled": _shuffled,
    "edges": _edges,
}
