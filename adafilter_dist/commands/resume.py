"""``adafilter resume``: go on with a run by its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.console import Console
from adafilter_dist.errors import UserError
from adafilter_dist.kept_recipe import recipe_file
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.changes import require_known
from adafilter_dist.recipe.hints import no_run

HELP = "go on with the run in a folder"


def run(words: list[str]) -> int:
    """Parse ``RUN [key=value ...] [--allow-mismatch KEY]`` and go on from the newest checkpoint."""
    parser = Parser(
        prog="adafilter resume",
        description=HELP + ".",
        examples=[
            "adafilter resume runs/demo/1a2b3c4d",
            "adafilter resume runs/demo/1a2b3c4d train.epochs=20 optim.schedule_on_extend=stretch",
        ],
    )
    parser.add_argument("run", help="the run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="what is to be different from here on"
    )
    add_allow_mismatch(parser)
    add_gates(parser)
    options = parser.parse_intermixed_args(words)
    require_known(options.allow_mismatch)
    if wrong := no_run(options.run, options.overrides):
        raise UserError(wrong)
    folder = Path(options.run).expanduser()
    recipe = load_recipe([f"recipe={recipe_file(folder)}", *options.overrides])
    from adafilter_dist.attempt import run_attempt

    recipe = recipe.model_copy(update={"resume": str(folder)})
    return run_attempt(
        recipe,
        Console(),
        allow_mismatch=tuple(options.allow_mismatch),
        every_gate=options.gates,
    )


def add_allow_mismatch(parser: argparse.ArgumentParser) -> None:
    """The option by which a run goes on with other numbers than it began with."""
    parser.add_argument(
        "--allow-mismatch",
        action="append",
        default=[],
        metavar="KEY",
        help="go on although this key or section (optim.lr, data) changes the numbers of the run; "
        "may be given again",
    )


def add_gates(parser: argparse.ArgumentParser) -> None:
    """The option that shows all gates where a line about them is the default."""
    parser.add_argument(
        "--gates", action="store_true", help="show the gates of every layer at the end"
    )
