"""Caltech-256 in its official layout: ``256_ObjectCategories/NNN.name/*.jpg``."""

from __future__ import annotations

import re
from pathlib import Path

from adafilter_dist.data.sources.download import Say, fetch_folder
from adafilter_dist.data.sources.listing import Sample, SourceListing, root_of
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data

CLASSES, PICTURES = 256, 29_780
_PICTURES_FOLDER = "256_ObjectCategories"
_CLASS = re.compile(r"\d{3}\..+")
_CLUTTER = "257.clutter"


def find(data: Data) -> SourceListing:
    """All pictures but the clutter, in one pool: no split is published.

    data.root may be ``256_ObjectCategories``, the folder that holds it, or the one above with a
    folder ``caltech256``, as torchvision has it.
    """
    base = _base(data)
    if base is None:
        raise UserError(
            f"data.root={root_of(data)}: Caltech-256 is not there; expected the unpacked "
            f"{_PICTURES_FOLDER}.tar: folders such as {_PICTURES_FOLDER}/001.ak47 in it; or "
            "data.download=true"
        )
    # torchvision's class makes up the names of a class's pictures from their number, and stops at
    # a stray file between the class folders; so the pictures that are there are listed instead.
    classes = sorted(
        entry.name
        for entry in base.iterdir()
        if _CLASS.fullmatch(entry.name) and entry.name != _CLUTTER and entry.is_dir()
    )
    samples = [
        Sample(f"{name}/{path.name}", label, base)
        for label, name in enumerate(classes)
        for path in _pictures(base / name)
    ]
    notes = []
    if (len(classes), len(samples)) != (CLASSES, PICTURES):
        notes.append(
            f"this is not the full Caltech-256: {len(classes)} of {CLASSES} classes, "
            f"{len(samples)} of {PICTURES} pictures (clutter left out)"
        )
    return SourceListing(base, classes, samples, None, notes)


def is_there(data: Data) -> bool:
    """Whether its folders are there."""
    return _base(data) is not None


def fetch(data: Data, say: Say) -> None:
    """Download Caltech-256 through torchvision. Raises UserError."""
    root = root_of(data)
    target = root if root.name == _PICTURES_FOLDER else root / "caltech256" / _PICTURES_FOLDER
    say(f"downloading Caltech-256 (1.2 GB) into {target}")
    layout = f"the unpacked {_PICTURES_FOLDER}.tar at {target}"
    fetch_folder(target, "Caltech-256", 25 * 10**8, layout, _download)


def _download(scratch: Path) -> Path:
    from torchvision.datasets import Caltech256  # torch comes with it: seconds

    return Path(Caltech256(str(scratch), download=True).root, _PICTURES_FOLDER)


def _base(data: Data) -> Path | None:
    """The folder that holds those of the classes; None where there is none."""
    root = root_of(data)
    for place in (root, root / _PICTURES_FOLDER, root / "caltech256" / _PICTURES_FOLDER):
        if place.is_dir() and any(_CLASS.fullmatch(entry.name) for entry in place.iterdir()):
            return place
    return None


def _pictures(folder: Path) -> list[Path]:
    """Its JPEG files; 056.dog holds a folder ``greg`` and 198.spider a script besides."""
    return sorted(
        path for path in folder.iterdir() if path.suffix == ".jpg" and not path.name.startswith(".")
    )
