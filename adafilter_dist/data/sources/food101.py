"""Food-101 in its official layout: ``food-101/images`` and ``food-101/meta``."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from adafilter_dist.data.sources.download import Say, fetch_folder
from adafilter_dist.data.sources.listing import Sample, SourceListing, root_of
from adafilter_dist.errors import UserError, printable, unprintable
from adafilter_dist.recipe.sections.data import Data

CLASSES, TRAIN, TEST = 101, 75_750, 25_250
_LAYOUT = "the unpacked food-101.tar.gz (folders images/ and meta/)"


def find(data: Data) -> SourceListing:
    """The published splits. data.root may be the folder ``food-101`` or the one that holds it."""
    base = _base(data)
    if base is None:
        raise UserError(
            f"data.root={root_of(data)}: Food-101 is not there; expected {_LAYOUT} in it or in its "
            "folder food-101; or data.download=true"
        )
    # torchvision insists on the folder's name, so it gets a link of that name.
    with tempfile.TemporaryDirectory() as holder:
        link = Path(holder, "food-101")
        link.symlink_to(base, target_is_directory=True)
        train, classes = _split(link, base, "train")
        test, test_classes = _split(link, base, "test")
    if classes != test_classes:
        raise UserError(f"{base / 'meta'}: train.json and test.json name different classes")
    notes = []
    if (len(classes), len(train), len(test)) != (CLASSES, TRAIN, TEST):
        notes.append(
            f"this is not the full Food-101: {len(classes)} of {CLASSES} classes, {len(train)} of "
            f"{TRAIN} training and {len(test)} of {TEST} test pictures"
        )
    return SourceListing(base, classes, train, test, notes)


def is_there(data: Data) -> bool:
    """Whether its folders are there."""
    return _base(data) is not None


def lists_of(data: Data) -> dict[str, Path]:
    """The files in meta/ that say which pictures belong to which class and split."""
    base = _base(data) or root_of(data)
    return {f"meta/{split}.json": base / "meta" / f"{split}.json" for split in ("train", "test")}


def fetch(data: Data, say: Say) -> None:
    """Download Food-101 through torchvision. Raises UserError."""
    root = root_of(data)
    target = root if root.name == "food-101" else root / "food-101"
    say(f"downloading Food-101 (5 GB) into {target}")
    fetch_folder(target, "Food-101", 11 * 10**9, f"{_LAYOUT} at {target}", _download)


def _download(scratch: Path) -> Path:
    from torchvision.datasets import Food101  # torch comes with it: seconds

    Food101(scratch, download=True)
    return scratch / "food-101"


def _base(data: Data) -> Path | None:
    """The folder that holds images/ and meta/; None where there is none."""
    places = (root_of(data), root_of(data) / "food-101")
    return next((p for p in places if (p / "images").is_dir() and (p / "meta").is_dir()), None)


def _split(link: Path, base: Path, split: str) -> tuple[list[Sample], list[str]]:
    from torchvision.datasets import Food101  # torch comes with it: seconds

    _require_list(base / "meta" / f"{split}.json")
    # Its "loader" is called with the picture's path, which is what we are after.
    published = Food101(link.parent, split=split, loader=Path)
    samples = []
    for path, label in published:
        name = path.relative_to(link).as_posix()
        samples.append(Sample(name, label, base))
    samples.sort(key=lambda sample: (sample.label, sample.name))
    return samples, published.classes


def _require_list(path: Path) -> None:
    """UserError unless the file maps each class to its pictures, ``CLASS/NAME``, each once."""

    def broken(what: str) -> UserError:
        return UserError(
            f"{path}: {what}; expected it as published, "
            '{"apple_pie": ["apple_pie/1005649", ...], ...}; unpack food-101.tar.gz again'
        )

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise broken(f"{printable(twice[0])} is in it twice")
        return dict(pairs)

    try:
        listed = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise broken("too many brackets in each other") from None
    except (OSError, ValueError) as error:  # a JSON error is a ValueError
        raise broken(f"{error.strerror if isinstance(error, OSError) else error}") from None
    if not isinstance(listed, dict) or not listed:
        raise broken("names no classes")
    for name, pictures in listed.items():
        if not isinstance(pictures, list):
            raise broken(f"no list of pictures of {printable(name)}")
        for picture in pictures:
            stem = picture.removeprefix(f"{name}/") if isinstance(picture, str) else ""
            if not stem or stem == picture or "/" in stem or unprintable(picture):
                shown = printable(picture) if isinstance(picture, str) else repr(picture)[:80]
                raise broken(f"{shown} is no picture of {printable(name)}")
        twice = [picture for picture, count in Counter(pictures).items() if count > 1]
        if twice:
            raise broken(f"{printable(twice[0])} is in it twice")
