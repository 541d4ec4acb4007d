"""UCF-101 and Omniglot as the Visual Decathlon publishes them: small pictures, lists in JSON.

UCF-101 has one picture a video, its dynamic image. Shorter sides are 72 px.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ValidationError

from adafilter_dist.data.sources.listing import Sample, SourceListing, root_of
from adafilter_dist.data.sources.published import (
    Counts,
    count_notes,
    each_once,
    first_folder,
    require_inside,
)
from adafilter_dist.errors import UserError, printable
from adafilter_dist.recipe.sections.data import Data

# Test pictures are those of the published validation split.
PUBLISHED = {
    "ucf101": Counts(classes=101, train=7_585, test=1_952),
    "omniglot": Counts(classes=1_623, train=17_853, test=6_492),
}
_TITLES = {"ucf101": "UCF-101 of the Visual Decathlon", "omniglot": "Omniglot of the Decathlon"}
_PAGE = "https://www.robots.ox.ac.uk/~vgg/decathlon/"
_AGAIN = f"unpack decathlon-1.0-devkit.tar.gz again, from {_PAGE}"


class _Picture(BaseModel):
    id: int
    file_name: str


class _Label(BaseModel):
    image_id: int
    category_id: int


class _Category(BaseModel):
    id: int
    name: str


class _List(BaseModel):
    """The part of an annotation file (as COCO's) that is used."""

    images: list[_Picture]
    annotations: list[_Label]
    categories: list[_Category]


def find(data: Data) -> SourceListing:
    """Training pictures, and those of the validation split as the test split.

    The labels of the test pictures are not published, and papers that use these sets test on the
    validation split. data.root is decathlon-1.0, or the folder that holds it. SET.tar is unpacked
    there or in its folder data/.
    """
    base, name = _base(data), data.name
    if base is None:
        raise UserError(
            f"data.root={root_of(data)}: {_TITLES[name]} is not there; expected the unpacked "
            f"decathlon-1.0-devkit.tar.gz (annotations/{name}_train.json) and, beside annotations/ "
            f"or in data/, {name}.tar of decathlon-1.0-data.tar.gz ({name}/train/), from {_PAGE}"
        )
    paths = list(lists_of(data).values())
    listed = [_read(path) for path in paths]
    if listed[0].categories != listed[1].categories:
        raise UserError(f"{paths[1]}: other categories than in {paths[0].name}; {_AGAIN}")
    categories = sorted(listed[0].categories, key=lambda category: category.id)
    number = {category.id: label for label, category in enumerate(categories)}
    splits, notes = [], []
    for path, one in zip(paths, listed, strict=True):
        samples, twice = each_once(_samples(path, one, base, number), path)
        splits.append(samples)
        notes += twice
    train, test = splits
    notes.append(
        "the labels of the Decathlon's test pictures are not published: its validation split of "
        f"{len(test):,} pictures is the test split here"
    )
    present = Counts(len(categories), len(train), len(test))
    notes += count_notes(_TITLES[name], PUBLISHED[name], present)
    return SourceListing(base, _names(categories), train, test, notes)


def is_there(data: Data) -> bool:
    """Whether its list of training pictures is there."""
    return _base(data) is not None


def lists_of(data: Data) -> dict[str, Path]:
    """The lists of the training and of the validation split."""
    folder = (_base(data) or root_of(data)) / "annotations"
    return {name: folder / name for name in (f"{data.name}_{s}.json" for s in ("train", "val"))}


def _base(data: Data) -> Path | None:
    root = root_of(data)
    places = (root, root / "decathlon-1.0")
    return first_folder(places, f"annotations/{data.name}_train.json")


def _read(path: Path) -> _List:
    try:
        listed = _List.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_AGAIN}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{path}: not as published ({printable(what)}); {_AGAIN}") from None
    for what, numbers in (
        ("image", [one.id for one in listed.images]),
        ("category", [one.id for one in listed.categories]),
        ("annotation of image", [one.image_id for one in listed.annotations]),
    ):
        twice = [number for number, count in Counter(numbers).items() if count > 1]
        if twice:
            raise UserError(f"{path}: {what} {twice[0]} is in it twice; {_AGAIN}")
    return listed


def _samples(path: Path, listed: _List, base: Path, number: dict[int, int]) -> list[Sample]:
    """Every picture with its label; its name begins with SET/."""
    category = {one.image_id: one.category_id for one in listed.annotations}
    stray = category.keys() - {one.id for one in listed.images}
    if stray:
        raise UserError(f"{path}: an annotation of image {min(stray)}, which is none; {_AGAIN}")
    samples = []
    for one in listed.images:
        if category.get(one.id) not in number:
            what = f"category {category[one.id]}, which is none" if one.id in category else "none"
            raise UserError(f"{path}: the category of image {one.id} is {what}; {_AGAIN}")
        # Names in the lists begin with data/, names in SET.tar do not.
        inside = require_inside(str(path), one.file_name, _AGAIN)
        name = str(inside).removeprefix("data/")
        place = base / "data" if (base / "data").is_dir() else base
        samples.append(Sample(name, number[category[one.id]], place))
    return samples


def _names(categories: list[_Category]) -> list[str]:
    """Names of the classes; with the number in front where several have one name."""
    counts = Counter(category.name for category in categories)
    return [one.name if counts[one.name] == 1 else f"{one.id:04d}.{one.name}" for one in categories]
