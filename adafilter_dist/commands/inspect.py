"""``adafilter inspect``: what a recipe would train and what it costs."""

from __future__ import annotations

from adafilter_dist.commands.parser import Parser
from adafilter_dist.recipe import load_recipe
from adafilter_dist.system.console import Console

HELP = "show gated layers, parameters, operations and memory of a recipe"


def run(words: list[str]) -> int:
    """Print the description; UserError for a recipe that cannot be built."""
    parser = Parser(
        "adafilter inspect",
        description=HELP + ".",
        examples=["adafilter inspect recipe=food101 --classes 101"],
    )
    parser.add_argument("--classes", type=int, help="number of classes; default from the data")
    parser.add_argument("recipe", nargs="*", metavar="key=value", help="recipe=NAME, overrides")
    options = parser.parse_intermixed_args(words)
    recipe = load_recipe(options.recipe)
    # Imported here: --help and a mistyped recipe need not wait for the models.
    from adafilter_dist.report.description import describe

    describe(recipe, options.classes, Console(soft_wrap=True, highlight=False))
    return 0
