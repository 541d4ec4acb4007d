"""``adafilter resume``: go on with a run by its folder."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.changes import add_allow_mismatch, require_known
from adafilter_dist.recipe.hints import no_run
from adafilter_dist.run.kept_recipe import recipe_file
from adafilter_dist.system.console import Console
from adafilter_dist.system.importing import importing

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
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="what is to be different from here on"
    )
    add_allow_mismatch(parser)
    parser.add_gates()
    options = parser.parse_intermixed_args(words)
    require_known(options.allow_mismatch)
    if wrong := no_run(options.run, options.overrides):
        raise UserError(wrong)
    folder = Path(options.run).expanduser()
    recipe = load_recipe([f"recipe={recipe_file(folder)}", *options.overrides])
    with importing():
        from adafilter_dist.training.attempt import run_attempt

    recipe = recipe.model_copy(update={"resume": str(folder)})
    return run_attempt(
        recipe,
        Console(),
        allow_mismatch=tuple(options.allow_mismatch),
        every_gate=options.gates,
    )
