"""``adafilter resume``: go on with a run by its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import load_recipe

HELP = "go on with the run in a folder"


def run(words: list[str]) -> int:
    """Parse ``RUN [key=value ...]`` and train on from the run's newest checkpoint."""
    parser = argparse.ArgumentParser(prog="adafilter resume", description=HELP + ".")
    parser.add_argument("run", help="the run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys that do not change the numbers"
    )
    options = parser.parse_args(words)
    folder = Path(options.run).expanduser()
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no recipe.yaml in it)")
    recipe = load_recipe([f"recipe={folder / 'recipe.yaml'}", *options.overrides])
    from adafilter_dist.attempt import run_attempt

    return run_attempt(recipe.model_copy(update={"resume": str(folder)}), Console())
