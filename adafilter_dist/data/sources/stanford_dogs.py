"""Stanford Dogs in its official layout: ``Images/nXXXXXXXX-NAME/*.jpg`` and two MATLAB lists."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.data.sources.listing import SourceListing, root_of
from adafilter_dist.data.sources.published import (
    Counts,
    class_and_picture,
    count_notes,
    first_folder,
    in_class_folders,
)
from adafilter_dist.errors import UserError, printable
from adafilter_dist.recipe.sections.data import Data

PUBLISHED = Counts(classes=120, train=12_000, test=8_580)
_PAGE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
_LISTS = ("train_list.mat", "test_list.mat")
_AGAIN = f"unpack lists.tar again, from {_PAGE}"


def find(data: Data) -> SourceListing:
    """The published splits; a class is called as its folder, n02085620-Chihuahua.

    data.root is the folder that holds Images/, with the two lists in it or in its folder lists/.
    """
    base = _base(data)
    if base is None:
        raise UserError(
            f"data.root={root_of(data)}: Stanford Dogs is not there; expected the unpacked "
            "images.tar (Images/nXXXXXXXX-NAME/*.jpg) and lists.tar (train_list.mat, "
            f"test_list.mat), from {_PAGE}"
        )
    lists = {path: _names(path) for path in lists_of(data).values()}
    classes, (train, test), notes = in_class_folders(base, "Images", lists)
    present = Counts(len(classes), len(train), len(test))
    notes += count_notes("Stanford Dogs", PUBLISHED, present)
    return SourceListing(base, classes, train, test, notes)


def is_there(data: Data) -> bool:
    """Whether its folder of pictures is there."""
    return _base(data) is not None


def lists_of(data: Data) -> dict[str, Path]:
    """The lists of both splits."""
    base = _base(data) or root_of(data)
    place = first_folder((base, base / "lists"), _LISTS[0]) or base
    return {name: place / name for name in _LISTS}


def _base(data: Data) -> Path | None:
    return first_folder((root_of(data), root_of(data) / "stanford-dogs"), "Images")


def _names(path: Path) -> list[str]:
    """``CLASS/PICTURE.jpg`` of each row; UserError unless the list is as published."""
    try:
        from scipy.io import loadmat  # half a second
    except ImportError:
        raise UserError(
            f"{path}: SciPy reads lists of MATLAB: pip install 'adafilter-dist[dogs]'"
        ) from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_AGAIN}")
    try:
        column = loadmat(path, variable_names=["file_list"])["file_list"]
        rows = [str(cell.item()) for cell in column.ravel()]  # each cell holds one text
    except Exception as error:  # SciPy raises errors of any kind for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: not as published ({printable(reason)}); {_AGAIN}") from None
    return [
        class_and_picture(f"{path}, row {number}", row, _AGAIN)
        for number, row in enumerate(rows, 1)
    ]
