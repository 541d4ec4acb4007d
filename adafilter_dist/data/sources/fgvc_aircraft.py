"""FGVC-Aircraft in its official layout: ``fgvc-aircraft-2013b/data`` with lists of variants."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.data.sources.download import Say, fetch_folder
from adafilter_dist.data.sources.listing import Sample, SourceListing, root_of
from adafilter_dist.data.sources.published import (
    Counts,
    count_notes,
    each_once,
    first_folder,
    read_lines,
    require_inside,
)
from adafilter_dist.errors import UserError, nearest, printable
from adafilter_dist.recipe.sections.data import Data

PUBLISHED = Counts(classes=100, train=3_334, validation=3_333, test=3_333)
_FOLDER = "fgvc-aircraft-2013b"
_MD5 = "d4acdd33327262359767eeaa97a4f732"  # of the archive; other programs check it, too
_LAYOUT = f"the unpacked {_FOLDER}.tar.gz (data/images/ and data/images_variant_*.txt)"
_AGAIN = f"unpack {_FOLDER}.tar.gz again"
_SPLITS = ("train", "val", "test")


def find(data: Data) -> SourceListing:
    """The published splits train, val and test, by variant (Boeing 737-700).

    data.root may be ``fgvc-aircraft-2013b``, the folder that holds it, or ``data`` in it. The
    pictures are as published, with the line of credits in their last 20 rows.
    """
    base = _base(data)
    if base is None:
        raise UserError(
            f"data.root={root_of(data)}: FGVC-Aircraft is not there; expected {_LAYOUT} in it or "
            f"in its folder {_FOLDER}; or data.download=true"
        )
    classes = [line for _, line in read_lines(base / "variants.txt", _AGAIN)]
    label = {name: number for number, name in enumerate(classes)}
    if len(label) < len(classes):
        raise UserError(f"{base / 'variants.txt'}: a variant is listed twice; {_AGAIN}")
    splits, notes = {}, []
    for split in _SPLITS:
        path = _list(base, split)
        splits[split], twice = each_once(_samples(path, base, label), path)
        notes += twice
    train, validation, test = (splits[split] for split in _SPLITS)
    present = Counts(len(classes), len(train), len(test), len(validation))
    notes += count_notes("FGVC-Aircraft", PUBLISHED, present)
    return SourceListing(base, classes, train, test, notes, validation)


def is_there(data: Data) -> bool:
    """Whether its folder of pictures and its list of variants are there."""
    return _base(data) is not None


def lists_of(data: Data) -> dict[str, Path]:
    """The list of variants, and those that say of which one each picture is."""
    base = _base(data) or root_of(data)
    lists = (base / "variants.txt", *(_list(base, split) for split in _SPLITS))
    return {path.name: path for path in lists}


def fetch(data: Data, say: Say) -> None:
    """Download FGVC-Aircraft through torchvision. Raises UserError."""
    root = root_of(data)
    target = root if root.name == _FOLDER else root / _FOLDER
    say(f"downloading FGVC-Aircraft (2.75 GB) into {target}")
    fetch_folder(target, "FGVC-Aircraft", 6 * 10**9, f"{_LAYOUT} at {target}", _download)


def _download(scratch: Path) -> Path:
    from torchvision.datasets import FGVCAircraft  # torch comes with it: seconds
    from torchvision.datasets.utils import download_and_extract_archive

    # FGVCAircraft(download=True) checks no sum: it would unpack an archive that was cut short.
    download_and_extract_archive(FGVCAircraft._URL, str(scratch), md5=_MD5)
    return scratch / _FOLDER


def _base(data: Data) -> Path | None:
    root = root_of(data)
    return first_folder((root / _FOLDER / "data", root / "data", root), "images", "variants.txt")


def _list(base: Path, split: str) -> Path:
    return base / f"images_variant_{split}.txt"


def _samples(path: Path, base: Path, label: dict[str, int]) -> list[Sample]:
    """The pictures of a list, whose lines are ``NUMBER VARIANT``; variants have blanks in them."""
    samples = []
    for place, line in read_lines(path, _AGAIN):
        number, _, variant = line.partition(" ")
        if variant.strip() not in label:
            raise UserError(
                f"{place}: {printable(variant) or 'no variant'!r} is not in variants.txt"
                f"{nearest(variant, label)}; {_AGAIN}"
            )
        name = f"images/{require_inside(place, number, _AGAIN)}.jpg"
        samples.append(Sample(name, label[variant.strip()], base))
    return samples
