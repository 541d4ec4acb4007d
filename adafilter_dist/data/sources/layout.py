"""Which folders below a root are splits and which are classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from adafilter_dist.data.sources.listing import DEFAULT_NAME
from adafilter_dist.data.sources.split import SplitName
from adafilter_dist.data.sources.split_names import is_filler, resembles, split_of
from adafilter_dist.data.sources.walk import Walk, contents
from adafilter_dist.errors import UserError, printable

LAYOUTS = (
    "train/CLASS/*.jpg with test/CLASS/*.jpg and maybe val/CLASS/*.jpg, CLASS/*.jpg alone, or "
    "data.csv=FILE with the columns path,label,split"
)


@dataclass(frozen=True)
class Layout:
    """The folders that hold class folders, by split; or one pool of them, whose split is None."""

    folders: dict[SplitName | None, Path]
    notes: list[str] = field(default_factory=list)


def read_layout(walk: Walk, classes: Collection[str], test_on_val: bool) -> Layout:
    """The layout below ``walk.root``; UserError where a folder can be meant in two ways.

    ``classes`` are names that the recipe says are classes. With ``test_on_val`` a test folder is
    left out.
    """
    place = walk.root
    while True:
        folders = class_folders(walk, place)
        splits = {f: s for f in folders if (s := split_of(f.name)) is not None}
        named = set(classes) <= {folder.name for folder in folders}
        if classes and (named or any(folder.name in classes for folder in splits)):
            return Layout({None: place})
        if splits:
            return _with_splits(walk, place, folders, splits, test_on_val)
        holding = [folder for folder in folders if walk.has_pictures(folder)]
        if len(holding) == 1 and _is_around(walk, holding[0]):
            place = holding[0]  # images/train, images/test
            continue
        _refuse_hidden_splits(walk, place, holding)
        within = place.relative_to(walk.root)
        notes = [] if place == walk.root else [f"the class folders are those in {within}/"]
        return Layout({None: place}, [*notes, *_loose(walk, place)])


def _is_around(walk: Walk, only: Path) -> bool:
    """Whether the only folder with pictures is no class, but holds the splits or the classes."""
    return not contents(only).pictures and (
        is_filler(only.name) or any(split_of(f.name) for f in class_folders(walk, only))
    )


def class_folders(walk: Walk, place: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without what `prepare` wrote there."""
    return [
        folder
        for folder in contents(place).folders
        if not _is_prepared(folder) and not walk.leads_back(folder)
    ]


def _is_prepared(folder: Path) -> bool:
    if DEFAULT_NAME.fullmatch(folder.name):
        return True
    return (folder / "manifest.json").is_file() and (folder / "classes.csv").is_file()


def _with_splits(
    walk: Walk,
    place: Path,
    folders: list[Path],
    splits: dict[Path, SplitName],
    test_on_val: bool,
) -> Layout:
    """Folders of which some have the name of a split."""
    others = [f for f in folders if f not in splits and walk.has_pictures(f)]
    deep = [f for f in splits if any(walk.has_pictures(g) for g in class_folders(walk, f))]
    flat = [f for f in splits if f not in deep and contents(f).pictures]
    if not deep:
        if others:  # bus, train, tram: pictures in each
            return Layout(
                {None: place},
                [f"{_these(flat)} with pictures, not class folders: taken for a class"]
                if flat
                else [],
            )
        if not flat:
            raise UserError(f"{printable(place)}: no pictures in {_these(splits)}")
        raise UserError(
            f"{printable(place)}: {_these(flat)} with pictures but no class folders, so nothing "
            f"says what is on them; expected {LAYOUTS}; {_if_classes(flat)}"
        )
    if test_on_val:  # a test folder without labels is no hindrance
        flat = [folder for folder in flat if splits[folder] != "test"]
    if flat:
        raise UserError(
            f"{printable(place)}: {_these(deep)} with class folders, {_these(flat)} with pictures "
            "alone, so nothing says what is on them; put them into class folders or elsewhere, or "
            f"list all pictures in data.csv; {_if_classes([*deep, *flat, *others])}"
        )
    empty = [f for f in splits if f not in deep and not walk.has_pictures(f)]
    if empty:
        raise UserError(f"{printable(place)}: no pictures in {_these(empty)}; remove what is empty")
    by_split: dict[SplitName, Path] = {}
    for folder in deep:
        twin = by_split.setdefault(splits[folder], folder)
        if twin != folder:
            raise UserError(
                f"{printable(place)}: {twin.name}/ and {folder.name}/ both mean the split "
                f"{splits[folder]}; rename or remove one"
            )
    if "train" not in by_split:
        raise UserError(
            f"{printable(place)}: {_these(deep)} with class folders, and no train/; put the class "
            f"folders of the training pictures into train/; {_if_classes(deep)}"
        )
    missed = [f for f in others if resembles(f.name) not in (None, *by_split)]
    if missed or (others and len(by_split) == 1):
        raise UserError(
            f"{printable(place)}: {_these(deep)} taken for a split would leave out "
            f"{_these(others)}; name splits train/, val/, test/ and put what is none elsewhere; "
            f"{_if_classes([*deep, *others])}"
        )
    taken = {s: f for s, f in by_split.items() if not (test_on_val and s == "test")}
    unused = [*others, *(f for f in splits if f not in taken.values() and walk.has_pictures(f))]
    notes = [_reading(walk, {splits[f]: f for f in taken.values()})]
    if unused:
        notes.append(f"{_these(unused)} left out: not used as a split")
    notes += _loose(walk, place)
    within: dict[SplitName | None, Path] = {}
    for split, folder in taken.items():
        within[split] = _classes_place(walk, folder)
        notes += _loose(walk, within[split])
    return Layout(within, [note for note in notes if note])


def _refuse_hidden_splits(walk: Walk, place: Path, holding: list[Path]) -> None:
    """Folders that would become classes although splits are written all over them."""
    deep = [f for f in holding if any(walk.has_pictures(g) for g in class_folders(walk, f))]
    alike = {f: s for f in deep if (s := resembles(f.name)) is not None}
    # Names are only close to those of splits, but there is one for training and one for the rest.
    if "train" in alike.values() and len(set(alike.values())) > 1:
        raise UserError(
            f"{printable(place)}: {_these(alike)} with folders in them, like splits; name splits "
            f"train/, val/, test/; {_if_classes(alike)}"
        )
    for folder in deep:
        inside = {split_of(f.name): f for f in class_folders(walk, folder)}
        if "train" in inside and {"val", "test"} & inside.keys():
            raise UserError(
                f"{printable(folder)}: {_these(f for s, f in inside.items() if s)} in a folder "
                f"that would be a class; set data.root={printable(folder)} if it holds all, or "
                "make it train/CLASS and test/CLASS, or list the pictures in data.csv"
            )


def _classes_place(walk: Walk, split: Path) -> Path:
    """Where the class folders of a split lie: in it, or in the one folder images/ in it."""
    place = split
    while not contents(place).pictures:
        inner = [f for f in class_folders(walk, place) if walk.has_pictures(f)]
        if len(inner) != 1 or not (
            is_filler(inner[0].name) or split_of(inner[0].name) == split_of(split.name)
        ):
            break
        place = inner[0]
    return place


def _reading(walk: Walk, folders: dict[SplitName, Path]) -> str:
    """What was taken for what; empty where folders are called train and test."""
    names = {split: printable(folder.relative_to(walk.root)) for split, folder in folders.items()}
    if all(name == split for split, name in names.items()) and "val" not in names:
        return ""
    order: list[SplitName] = ["train", "val", "test"]
    return "splits: " + ", ".join(f"{names[s]}/ -> {s}" for s in order if s in names)


def _loose(walk: Walk, place: Path) -> list[str]:
    """A note on pictures beside class folders."""
    pictures = contents(place).pictures
    if not pictures:
        return []
    return [
        f"{len(pictures)} {'picture' if len(pictures) == 1 else 'pictures'} beside the class "
        f"folders left out, e.g. {printable(pictures[0].relative_to(walk.root))}"
    ]


def _these(folders: Iterable[Path]) -> str:
    names = [f"{printable(folder.name)}/" for folder in folders]
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _if_classes(folders: Iterable[Path]) -> str:
    names = ",".join(printable(folder.name) for folder in folders)
    return f"if they are classes, say so: data.classes=[{names}]"
