"""Layers of a recipe as trees of sections: a file over its ``base:``, words over the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adafilter_dist.errors import UserError, nearest, shown
from adafilter_dist.recipe.find import find_recipe, recipe_folders
from adafilter_dist.recipe.follow import give_way
from adafilter_dist.recipe.keys import sections_in
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import Baseline
from adafilter_dist.recipe.sections.engine import AnyEngine
from adafilter_dist.recipe.sections.launch import Launch
from adafilter_dist.recipe.site import find_site
from adafilter_dist.recipe.yaml_loader import Block, YamlError, read_yaml_file, twice_by_dots

_MOST_BASES = 20
_OVER = "e.g. 'over: {food101: {train: {epochs: 5}}}'"

# The sections that are of one kind or another, and the keys that any kind has.
KINDS: dict[str, tuple[str, Collection[str]]] = {
    "method": ("adafilter", Baseline.model_fields),
    "engine": ("ddp", AnyEngine.model_fields),
}


def read_tree(path: Path, seen: tuple[Path, ...] = (), base: str | None = None) -> dict[str, Any]:
    """The sections of a recipe file, over those of its base; UserError that names the file.

    ``base`` names another recipe than the file's own base, which it must have. What the block
    ``over:`` of the file says for the base that it stands over, by name, counts as the file's own.
    """
    path = path.resolve()
    where = shown(str(path))
    if path in seen:
        raise UserError(f"{where}: base: leads back to the recipe itself")
    if len(seen) >= _MOST_BASES:
        raise UserError(f"{where}: base: more than {_MOST_BASES} recipes one over the other")
    try:
        tree = read_yaml_file(path)
        twice = twice_by_dots(tree) if isinstance(tree, Block) else ""
    except YamlError as error:
        raise UserError(f"{where}: {shown(str(error))}") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None
    if not isinstance(tree, Block):
        raise UserError(f"{where}: a recipe is a mapping of sections, e.g. 'optim: {{lr: 0.01}}'")
    if twice:
        raise UserError(f"{where}: {shown(twice)}")
    own_base, by_base = tree.pop("base", None), tree.pop("over", {})
    trees = isinstance(by_base, dict) and all(isinstance(v, dict) for v in by_base.values())
    if not trees or (by_base and own_base is None):
        raise UserError(f"{where}: over: holds sections by name of a base, {_OVER}")
    if base is not None and own_base is None:
        raise UserError(
            f"over={shown(base)}: {where} has no base:, so it does not stand over another recipe"
        )
    name = own_base if base is None else base
    if isinstance(name, str):
        tree = _merge(tree, by_base.get(name, {}))
    over = _merge({}, tree)
    if own_base is None:
        return over
    if base is not None:
        file = find_recipe(base, "over")
    else:
        name = own_base if isinstance(own_base, str) else getattr(own_base, "written", None) or ""
        sibling = path.parent / f"{name}.yaml"
        file = sibling if sibling.is_file() else find_recipe(name)
    below = read_tree(file, (*seen, path))
    give_way(below, over)
    return _merge(below, tree)


def put_words(tree: dict[str, Any], words: list[tuple[str, Any]]) -> None:
    """Put ``key=value`` pairs over a tree, from left to right; UserError for keys of no section."""
    over: dict[str, Any] = {}
    for key, value in words:
        put(over, key, value)
    give_way(tree, over)
    for key, value in words:
        put(tree, key, value)


def _merge(base: dict[str, Any], over: Mapping[str, Any], top: bool = True) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, dict):
            old = base.get(key)
            old = _spelled_out(key, old) if top and isinstance(old, str) else old
            kept = _kept(key, old, value.get("name"), top) if isinstance(old, dict) else {}
            base[key] = _merge(kept, value, top=False)
        else:
            put(base, key, value, top)
    return base


def _kept(key: str, old: Mapping[str, Any], name: object, top: bool = True) -> dict[str, Any]:
    """What stays of a section under another name: keys of the old kind must not stay behind."""
    if not top or key not in KINDS or name is None:
        return dict(old)
    default, shared = KINDS[key]
    same = name == old.get("name", default)
    return {k: value for k, value in old.items() if same or k in shared}


def put(tree: dict[str, Any], key: str, value: Any, top: bool = True) -> None:
    """Set a dotted key; ``launch=@NAME`` sets what a site file says. Raises UserError.

    ``top`` is false inside of a section, where ``model: x`` is no short form.
    """
    if top and key == "launch" and isinstance(value, str) and value.startswith("@"):
        for name, setting in _site(value[1:]).items():
            put(tree, f"launch.{name}", setting)
        return
    *parents, last = key.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if isinstance(inner, str):
            inner = _spelled_out(parent, inner)
        tree[parent] = inner = dict(inner) if isinstance(inner, dict) else {}
        tree = inner
    if top and last in named_sections() and not parents and isinstance(value, str):
        old = tree.get(last)
        tree[last] = {**(_kept(last, old, value) if isinstance(old, dict) else {}), "name": value}
    else:
        tree[last] = value


def _spelled_out(key: str, text: str) -> dict[str, Any]:
    """The section that ``model: resnet18`` is short for; UserError for what has no short form."""
    if key not in named_sections():
        raise UserError(
            f"{shown(key)}={shown(text)}: a text is replaced as a whole, not key by key"
        )
    return {"name": text}


def _site(name: str) -> dict[str, Any]:
    """The settings of a site file; UserError that names the file for a key that there is not."""
    path = find_site(name, recipe_folders())
    settings = read_tree(path)
    allowed = sorted(Launch.model_fields)
    unknown = [key for key in settings if key not in allowed]
    if unknown:
        raise UserError(
            "\n".join(
                f"{path}: {shown(key)}: unknown key{nearest(key, allowed)}; allowed, as in "
                "launch:, are: " + ", ".join(allowed)
                for key in unknown[:10]
            )
        )
    return settings


def named_sections() -> set[str]:
    """The sections that have a name, and with it a short form: ``model=resnet18``."""
    return {
        key
        for key, field in Recipe.model_fields.items()
        if any("name" in model.model_fields for model in sections_in(field.annotation))
    }
