"""From words to a recipe: files, ``base:``, ``key=value`` overrides, and errors that help."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adafilter_dist.errors import UserError, nearest
from adafilter_dist.recipe.comma_list import split_list
from adafilter_dist.recipe.engine import AnyEngine
from adafilter_dist.recipe.launch import Launch
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.site import find_site
from adafilter_dist.recipe.yaml_loader import read_yaml

_PACKAGE = Path(__file__).resolve().parent.parent
# In the wheel the recipes lie inside the package, in a clone beside it.
_SHIPPED = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def _folders() -> Iterator[Path]:
    yield Path("recipes")
    yield from _SHIPPED


def shipped_recipes() -> list[Path]:
    """The folder of the recipes that come with the package: one, inside of it or beside it."""
    return [folder for folder in _SHIPPED if (folder / "demo.yaml").is_file()][:1]


def recipe_names() -> list[str]:
    """Names of the recipes in ./recipes and in the package, sorted."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, else ./recipes/NAME.yaml, else the package's.

    Raises UserError when there is none, naming the nearest.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise UserError(f"recipe={name}: no such file")
    for folder in _folders():
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    names = recipe_names()
    raise UserError(
        f"recipe={name}: no recipe of that name{nearest(name, names)}; "
        f"there are: {', '.join(names)}; or give the path of a .yaml file"
    )


def load_recipe(words: Sequence[str]) -> Recipe:
    """The recipe that ``recipe=NAME key=value ...`` describes, checked and frozen.

    Raises UserError with one line per mistake, all at once.
    """
    named: str | None = None
    overrides: list[tuple[str, Any]] = []
    mistakes: list[str] = []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            mistakes.append(f"{word!r}: expected key=value, e.g. recipe=demo or optim.lr=0.01")
        elif key == "recipe":
            named = text
        elif key == "launch" and text.startswith("@"):  # no YAML begins with @
            overrides.append((key, text))
        elif key == "launch" and text and not text.startswith("{"):
            mistakes.append(f"{word}: a site file is named as launch=@{text}, a key as launch.KEY=")
        elif len(split_list(text)) > 1:
            mistakes.append(
                f"{key}={text}: a comma list is a sweep, and this command runs one recipe; "
                f"write a list as {key}=[{text}] or a text as {key}='\"{text}\"'"
            )
        else:
            try:
                overrides.append((key, read_yaml(text) if text else None))
            except yaml.YAMLError:
                mistakes.append(f"{key}={text}: not a YAML value")
    if named is None:
        mistakes.append(f"which recipe? add recipe=NAME, one of: {', '.join(recipe_names())}")
    if mistakes or named is None:
        raise UserError("\n".join(mistakes))
    tree = _read(find_recipe(named), ())
    for key, value in overrides:
        _put(tree, key, value)
    return _validated(tree)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: base: leads back to the recipe itself")
    try:
        tree = read_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, e.g. 'optim: {{lr: 0.01}}'")
    base = tree.pop("base", None)
    if base is None:
        return _merge({}, tree)
    sibling = path.parent / f"{base}.yaml"
    found = sibling if sibling.is_file() else find_recipe(str(base))
    return _merge(_read(found, (*seen, path)), tree)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, dict):
            old = base.get(key)
            old = _spelled_out(key, old) if isinstance(old, str) else old
            kept = _kept(key, old, value.get("name")) if isinstance(old, dict) else {}
            base[key] = _merge(kept, value)
        else:
            _put(base, str(key), value)
    return base


# The sections that are of one kind or another, and the keys that any kind has.
_KINDS: dict[str, tuple[str, Collection[str]]] = {
    "method": ("adafilter", ()),
    "engine": ("ddp", AnyEngine.model_fields),
}


def _kept(key: str, old: Mapping[str, Any], name: object) -> dict[str, Any]:
    """What stays of a section under another name: keys of the old kind must not stay behind."""
    if key not in _KINDS or name is None:
        return dict(old)
    default, shared = _KINDS[key]
    same = name == old.get("name", default)
    return {k: value for k, value in old.items() if same or k in shared}


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    if key == "launch" and isinstance(value, str) and value.startswith("@"):
        for name, setting in _site(value[1:]).items():
            _put(tree, f"launch.{name}", setting)
        return
    *parents, last = key.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if isinstance(inner, str):
            inner = _spelled_out(parent, inner)
        tree[parent] = inner = dict(inner) if isinstance(inner, dict) else {}
        tree = inner
    if last in _named_sections() and not parents and isinstance(value, str):
        old = tree.get(last)
        tree[last] = {**(_kept(last, old, value) if isinstance(old, dict) else {}), "name": value}
    else:
        tree[last] = value


def _spelled_out(key: str, text: str) -> dict[str, Any]:
    """The section that ``model: resnet18`` is short for; UserError for what has no short form."""
    if key not in _named_sections():
        raise UserError(f"{key}={text}: a text is replaced as a whole, not key by key")
    return {"name": text}


def _site(name: str) -> dict[str, Any]:
    """The settings of a site file; UserError that names the file for a key that there is not."""
    path = find_site(name, _folders())
    settings = _read(path, ())
    allowed = sorted(Launch.model_fields)
    unknown = [str(key) for key in settings if key not in allowed]
    if unknown:
        raise UserError(
            "\n".join(
                f"{path}: {key}: unknown key{nearest(key, allowed)}; allowed, as in launch:, are: "
                + ", ".join(allowed)
                for key in unknown
            )
        )
    return settings


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections inside a type: itself, or the members of a union of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models(part)


def _named_sections() -> set[str]:
    return {
        key
        for key, field in Recipe.model_fields.items()
        if any("name" in model.model_fields for model in _models(field.annotation))
    }


def _validated(tree: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(_without_empty(tree))
    except ValidationError as error:
        raise UserError("\n".join(_line(item) for item in error.errors())) from None


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``section: null`` means its defaults; a null leaf stays and is checked by its type."""
    return {k: v for k, v in tree.items() if v is not None or k not in Recipe.model_fields}


def _section(path: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """The key as the user wrote it (union tags left out) and the sections it lies in."""
    models: list[type[BaseModel]] = [Recipe]
    shown: list[str] = []
    for part in path:
        word = str(part)
        tagged = [
            m for m in models if "name" in m.model_fields and m.model_fields["name"].default == word
        ]
        if tagged and len(models) > 1:
            models = tagged
            continue
        shown.append(word)
        inner = [
            found
            for model in models
            if word in model.model_fields
            for found in _models(model.model_fields[word].annotation)
        ]
        if inner:
            models = inner
    return shown, models


def _of_another_kind(shown: Sequence[str]) -> str:
    """`` (a key of engine=deepspeed)`` where another kind of the section has the key."""
    section, _, key = ".".join(shown).partition(".")
    if section not in _KINDS:
        return ""
    for model in _models(Recipe.model_fields[section].annotation):
        if key in model.model_fields:
            return f" (a key of {section}={model.model_fields['name'].default})"
    return ""


def _line(item: ErrorDetails) -> str:
    shown, models = _section(item["loc"])
    key = ".".join(shown)
    if item["type"] == "extra_forbidden":
        allowed = sorted({name for model in models for name in model.model_fields})
        hint = _of_another_kind(shown) or nearest(shown[-1], allowed)
        return f"{key}: unknown key{hint}; allowed: {', '.join(allowed)}"
    if item["type"] == "missing":
        return f"{key}: missing; the recipe must say it"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":
        context = item.get("ctx", {})
        allowed = [w.strip(" '") for w in str(context.get("expected_tags", "")).split(",")]
        tag = str(context.get("tag", ""))
        return f"{key}.name={tag}: not known{nearest(tag, allowed)}; allowed: {', '.join(allowed)}"
    if item["type"] == "literal_error":
        expected = str(item.get("ctx", {}).get("expected", ""))
        allowed = re.findall(r"[^',\s]+", expected.replace(" or ", ", "))
        given = str(item["input"])
        return f"{key}={given}: not known{nearest(given, allowed)}; allowed: {', '.join(allowed)}"
    if not key or (item["type"] == "value_error" and isinstance(item["input"], dict)):
        return f"{key}: {message}" if key else message
    return f"{key}={item['input']}: {message[:1].lower()}{message[1:]}"


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that :func:`load_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)
