"""The recipe of a run as its folder keeps it: recipe.yaml, and recipe.json to check it by.

recipe.yaml is for people, who may edit it: what was changed in it by hand must not change the run
without a word. recipe.json holds the same recipe with a sha256 of itself; for the moment in which
recipe.yaml is replaced it holds two.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.recipe import Recipe, dump_recipe, load_recipe
from adafilter_dist.recipe.changes import covers
from adafilter_dist.recipe.identity import flat, numbers_of, run_hash
from adafilter_dist.recipe.word import as_word
from adafilter_dist.recipe.younger_keys import filled_in
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.no_run import no_run_in
from adafilter_dist.system.files import write_bytes, write_text
from adafilter_dist.system.sealed_files import DamagedError, read_manifest, sealed


def recipe_file(run: Path) -> Path:
    """RUN/recipe.yaml, written again from recipe.json where it is gone; UserError for no run."""
    path = RunFiles(run).recipe
    if not path.is_file():
        kept = _kept(run)
        if not kept:
            raise UserError(no_run_in(run))
        write_text(path, dump_recipe(kept[-1]))
    return path


def keep(run: Path, recipe: Recipe) -> None:
    """Write the recipe that a run goes on with, so that it can be read after any interruption."""
    _seal(run, [*_kept(run), recipe])
    write_text(RunFiles(run).recipe, dump_recipe(recipe))
    _seal(run, [recipe])


def seal(run: Path) -> None:
    """Write recipe.json where it is missing, as in runs of an earlier version, or holds two."""
    if len(_kept(run)) != 1:
        _seal(run, [load_recipe([f"recipe={RunFiles(run).recipe}"])])


def read_kept(run: Path, allow: Collection[str] = ()) -> Recipe:
    """The recipe that a run was started with, or goes on with since it was changed by a command.

    UserError with what differs where recipe.yaml was edited in a key that changes the numbers,
    unless ``allow`` names it: a key, or a section.
    """
    path = recipe_file(run)
    recipe, kept = load_recipe([f"recipe={path}"]), _kept(run)
    if not kept:
        _require_hash(run, recipe, allow)
        return recipe
    now = flat(numbers_of(recipe))
    if any(flat(numbers_of(each)) == now for each in kept):
        return recipe
    then = flat(numbers_of(kept[-1]))
    edited = [
        key
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not covers(allow, key)
    ]
    if not edited:
        return kept[-1]
    differences = ", ".join(
        f"{key}: {as_word(then.get(key))} -> {as_word(now.get(key))}" for key in edited
    )
    words = [f"{key}={as_word(now.get(key))}" for key in edited]
    words += [word for key in edited for word in ("--allow-mismatch", key)]
    raise UserError(
        f"{path} was edited, the run has other numbers ({differences}): put back what was "
        f"there; to go on with the new ones: {resume_line(run, *words)}"
    )


def _kept(run: Path) -> list[Recipe]:
    """What recipe.json holds, the newest last; nothing where it is missing, damaged or too old."""
    try:
        content = read_manifest(RunFiles(run).kept_recipe)
        return [Recipe.model_validate(filled_in(each)) for each in content["recipes"]]
    except (DamagedError, KeyError, TypeError, ValidationError):
        return []


def _seal(run: Path, recipes: list[Recipe]) -> None:
    dumps = [recipe.model_dump(mode="json") for recipe in recipes]
    write_bytes(RunFiles(run).kept_recipe, sealed({"recipes": dumps}))


def _require_hash(run: Path, recipe: Recipe, allow: Collection[str]) -> None:
    """Without recipe.json: UserError where the newest checkpoint is of a run with another hash."""
    for folder, manifest in RunFiles(run).checkpoint_manifests():
        known = manifest.get("run_hash")
        if isinstance(known, str) and known != run_hash(recipe) and not allow:
            raise UserError(
                f"{RunFiles(run).recipe} was edited: {folder.name} is of a run with the hash "
                f"{known}, this recipe's is {run_hash(recipe)}; put back what was there, or name "
                f"what may differ: {resume_line(run, '--allow-mismatch', 'optim')}"
            )
        return
