"""Any folder of pictures: folders of splits with class folders, class folders alone, or a CSV."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adafilter_dist.data.sources import csv_list
from adafilter_dist.data.sources.layout import LAYOUTS, class_folders, read_layout
from adafilter_dist.data.sources.listing import Sample, SourceListing, root_of
from adafilter_dist.data.sources.walk import Walk
from adafilter_dist.errors import UserError, nearest, no_such, printable
from adafilter_dist.pictures.formats import unread_by_suffix
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.counted import counted


def find(data: Data) -> SourceListing:
    """The pictures below data.root or listed in data.csv; UserError says what is amiss."""
    if data.csv is not None:
        if not data.csv.exists():
            raise UserError(f"data.csv={data.csv}: {no_such('file', data.csv)}")
        return csv_list.find(data.csv, root_of(data))
    root = data.root
    if root is None:
        raise UserError(f"data.root is not set; give the folder of the pictures: {LAYOUTS}")
    if not root.is_dir():
        raise UserError(
            f"data.root={printable(root)}: {no_such('folder', root)}; expected {LAYOUTS}"
        )
    walk, wanted = Walk(root), data.classes
    layout = read_layout(walk, wanted or (), data.test_split == "val")
    classes: list[str] = []
    splits: dict[str | None, list[Sample]] = {}
    for split in (None, "train", "val", "test"):
        if split not in layout.folders:
            continue
        place = layout.folders[split]
        if not classes:
            classes = [folder.name for folder in class_folders(walk, place)]
            if not classes:
                raise UserError(f"{printable(place)}: no class folders in it; expected {LAYOUTS}")
        splits[split] = _samples(walk, place, classes, wanted)
    notes = [*layout.notes, *walk.notes()]
    if walk.others:
        notes.append(
            f"{counted(len(walk.others), 'file')} below {printable(root)} not read, e.g. "
            f"{printable(min(walk.others))}: {printable(unread_by_suffix(walk.others))}"
        )
    if None in splits:
        return SourceListing(root, classes, splits[None], None, notes)
    return SourceListing(
        root, classes, splits["train"], splits.get("test"), notes, splits.get("val", [])
    )


def is_there(data: Data) -> bool:
    """Whether the CSV is there, or any picture below data.root."""
    if data.csv is not None:
        return data.csv.exists()
    return data.root is not None and data.root.is_dir() and Walk(data.root).has_pictures(data.root)


def _samples(
    walk: Walk, place: Path, classes: list[str], wanted: Collection[str] | None
) -> list[Sample]:
    """The pictures of the class folders in a folder, sorted by class and path."""
    samples: list[Sample] = []
    for folder in class_folders(walk, place):
        name = folder.name
        if wanted is not None and name not in wanted:
            continue
        if name not in classes:
            raise UserError(
                f"{printable(folder)}: this class has no folder in train/"
                f"{nearest(name, classes)}; add one, or name the classes to use with data.classes"
            )
        before = len(walk.others)
        pictures = walk.pictures(folder)
        if not pictures:
            others = walk.others[before:]
            unread = f" that are read, but {unread_by_suffix(others)}" if others else ""
            raise UserError(
                f"{printable(folder)}: no pictures in it{printable(unread)}; remove the folder, "
                "or name the classes to use with data.classes"
            )
        label = classes.index(name)
        samples += [Sample(p.relative_to(walk.root).as_posix(), label, walk.root) for p in pictures]
    return samples
