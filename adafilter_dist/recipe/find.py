"""Where recipes lie: the file of a name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adafilter_dist.errors import UserError, nearest, shown

_PACKAGE = Path(__file__).resolve().parent.parent
# In the wheel the recipes lie inside the package, in a clone beside it.
_SHIPPED = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def recipe_folders() -> Iterator[Path]:
    """The folders of recipes, in the order in which they are searched."""
    yield Path("recipes")
    yield from _SHIPPED


def shipped_recipes() -> list[Path]:
    """The folder of the recipes that come with the package: one, inside of it or beside it."""
    return [folder for folder in _SHIPPED if (folder / "demo.yaml").is_file()][:1]


def recipe_names() -> list[str]:
    """Names of the recipes in ./recipes and in the package, sorted; FOLDER/NAME in a folder there.

    The folder launch holds site files, which are no recipes.
    """
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in recipe_folders()
        for pattern in ("*.yaml", "*/*.yaml")
        for path in folder.glob(pattern)
    }
    return sorted(name for name in names if not name.startswith("launch/"))


def find_recipe(name: str, word: str = "recipe") -> Path:
    """The file of a recipe: a path as it is, else ./recipes/NAME.yaml, else the package's.

    FOLDER/NAME is a recipe of the package, or in ./recipes, where there is one of that name.
    ``word`` is the key that named it, for messages.

    Raises UserError when there is none, naming the nearest.
    """
    names = recipe_names()
    if name.endswith((".yaml", ".yml")) or ("/" in name and name not in names):
        return _file(name, names, word)
    for folder in recipe_folders():
        path = folder / f"{name}.yaml"
        if _is_file(path):
            return path
    if not name:
        raise UserError(f"{word}=: which one? There are: {', '.join(names)}")
    if _is_file(Path(name)):
        raise UserError(f"{word}={shown(name)}: a file is given as a path: {word}=./{shown(name)}")
    raise UserError(
        f"{word}={shown(name)}: no recipe of that name{nearest(name, names)}; "
        f"there are: {', '.join(names)}; or give the path of a .yaml file"
    )


def _file(name: str, names: list[str], word: str) -> Path:
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        kind = "a folder; give a .yaml file in it" if path.is_dir() else "no such file"
        if path.exists() and not path.is_dir():
            kind = "not a regular file"
        elif _is_file(path.with_name(f"{path.name}.yaml")):
            kind = f"no such file (did you mean '{shown(name)}.yaml'?)"
        elif not path.is_dir():
            bare = path.with_suffix("").as_posix()
            close = next((each for each in (bare, path.stem) if each in names), None)
            kind += f" (did you mean {word}={close}?)" if close else nearest(name, names)
    except (OSError, ValueError, RuntimeError) as error:  # ~nobody, a name too long, NUL
        kind = f"no such file: {getattr(error, 'strerror', None) or error}"
    raise UserError(f"{word}={shown(name)}: {kind}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
