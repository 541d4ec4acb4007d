"""The run that a command is about, from its folder or from the words that trained it."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.hints import no_run
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.recipe.sections.engine import DDP, AnyEngine
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.kept_recipe import read_kept


def find_run_of(words: list[str]) -> tuple[Path, Recipe]:
    """The run folder and its recipe, from the folder or from the words that trained it.

    The recipe's engine is DDP's: what trained the run need not be installed to measure it.
    """
    if any(word.startswith("recipe=") for word in words):
        recipe = load_recipe(words)
        folder = run_dir(recipe).expanduser()
        if not RunFiles(folder).recipe.is_file():
            raise UserError(
                f"{folder}: this recipe has no run there yet; train it first, or give the run's "
                "folder: adafilter evaluate RUN"
            )
        read_kept(folder)
        return folder, _with_ddp(recipe)
    if wrong := no_run(words[0], words[1:]):
        raise UserError(wrong)
    folder = Path(words[0]).expanduser()
    read_kept(folder)
    return folder, _with_ddp(load_recipe([f"recipe={RunFiles(folder).recipe}", *words[1:]]))


def _with_ddp(recipe: Recipe) -> Recipe:
    engine = DDP(**recipe.engine.model_dump(include=set(AnyEngine.model_fields)))
    return recipe.model_copy(update={"engine": engine})
