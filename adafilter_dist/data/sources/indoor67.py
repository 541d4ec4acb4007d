"""MIT Indoor-67 in its official layout: ``Images/CLASS/*.jpg``, TrainImages.txt, TestImages.txt."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.data.sources.listing import SourceListing, root_of
from adafilter_dist.data.sources.published import (
    Counts,
    class_and_picture,
    count_notes,
    first_folder,
    in_class_folders,
    read_lines,
)
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data

PUBLISHED = Counts(classes=67, train=5_360, test=1_340)
_PAGE = "https://web.mit.edu/torralba/www/indoor.html"
_LISTS = ("TrainImages.txt", "TestImages.txt")
_AGAIN = f"get the list again from {_PAGE}"


def find(data: Data) -> SourceListing:
    """The published subset of 80 training and 20 test pictures a class.

    data.root may be the folder that holds Images/, or the one that holds indoorCVPR_09/. The two
    lists, which are separate downloads, lie in either.
    """
    base = _base(data)
    if base is None:
        raise UserError(
            f"data.root={root_of(data)}: MIT Indoor-67 is not there; expected the unpacked "
            "indoorCVPR_09.tar (Images/CLASS/*.jpg), and TrainImages.txt and TestImages.txt beside "
            f"Images/, from {_PAGE}"
        )
    lists = {
        path: [class_and_picture(place, line, _AGAIN) for place, line in read_lines(path, _AGAIN)]
        for path in lists_of(data).values()
    }
    classes, (train, test), notes = in_class_folders(base, "Images", lists)
    present = Counts(len(classes), len(train), len(test))
    notes += count_notes("MIT Indoor-67", PUBLISHED, present)
    return SourceListing(base, classes, train, test, notes)


def is_there(data: Data) -> bool:
    """Whether its folder of pictures is there."""
    return _base(data) is not None


def lists_of(data: Data) -> dict[str, Path]:
    """The lists of both splits, by the names that they are published with."""
    base = _base(data) or root_of(data)
    return {name: _list(base, name) for name in _LISTS}


def _base(data: Data) -> Path | None:
    root = root_of(data)
    return first_folder((root, root / "indoorCVPR_09"), "Images")


def _list(base: Path, name: str) -> Path:
    beside = base / name
    return beside if beside.exists() or base.name != "indoorCVPR_09" else base.parent / name
