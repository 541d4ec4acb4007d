"""``adafilter train``: run a recipe to its end, from wherever its run stands."""

from __future__ import annotations

from adafilter_dist.commands.parser import Parser
from adafilter_dist.recipe import dump_recipe, load_recipe, recipe_names
from adafilter_dist.recipe.changes import add_allow_mismatch, require_known
from adafilter_dist.system.console import Console
from adafilter_dist.system.importing import importing

HELP = "train a recipe; the same words again go on where it stopped"


def run(words: list[str]) -> int:
    """Parse ``recipe=NAME key=value ... [--check] [--cfg] [--allow-mismatch KEY]`` and train."""
    parser = Parser(
        prog="adafilter train",
        description=f"{HELP}. One process, or under torchrun one a GPU.",
        examples=[
            "adafilter train recipe=demo",
            "adafilter train recipe=demo train.epochs=1 optim.lr=0.02",
            "adafilter train recipe=food101 data.root=/data/food-101 --check",
        ],
        more=f"recipes: {', '.join(recipe_names())}",
    )
    parser.add_argument("recipe", nargs="*", metavar="key=value", help="recipe=NAME, overrides")
    parser.add_argument(
        "--check",
        action="store_true",
        help="two steps, one save and load, then the projected time, disk and memory",
    )
    parser.add_argument("--cfg", action="store_true", help="print the resolved recipe and leave")
    add_allow_mismatch(parser)
    parser.add_gates()
    options = parser.parse_intermixed_args(words)
    recipe = load_recipe(options.recipe)
    require_known(options.allow_mismatch)
    if options.cfg:
        print(dump_recipe(recipe), end="")
        return 0
    console = Console()
    if options.check:
        from adafilter_dist.training.dry_run import run_check

        return run_check(recipe, console)
    with importing():
        from adafilter_dist.training.attempt import run_attempt

    return run_attempt(
        recipe,
        console,
        allow_mismatch=tuple(options.allow_mismatch),
        every_gate=options.gates,
    )
