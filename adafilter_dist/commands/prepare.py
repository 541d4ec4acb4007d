"""``adafilter prepare``: everything that training needs from elsewhere, fetched and made ready."""

from __future__ import annotations

from adafilter_dist.commands.parser import Parser
from adafilter_dist.recipe import load_recipe
from adafilter_dist.system.console import Console, print_plain

HELP = "fetch data and weights, store the pictures for fast reading"

_DESCRIPTION = """\
Fetch what is missing (data.download=false forbids it), check and convert every picture, and write
train and test set into one file each, beside the pictures or into data.prepared. Run it once,
where there is internet and a place to write; training then opens no network. What is right already
is left as it is, so running it again costs a look; after a kill it goes on where it was."""


def run(words: list[str]) -> int:
    """Run the verb with its words; 0 when everything is ready. Raises UserError."""
    parser = Parser(
        prog="adafilter prepare",
        description=_DESCRIPTION,
        examples=[
            "adafilter prepare recipe=demo",
            "adafilter prepare recipe=food101 data.root=/data/food-101",
        ],
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="recipe=NAME and overrides")
    recipe = load_recipe(parser.parse_args(words).words)
    # Imported here: --help and a mistyped recipe need not wait for the models.
    from adafilter_dist.data.prepare.prepare import list_sources, prepare
    from adafilter_dist.data.prepare.summary import draw_lines, summarise
    from adafilter_dist.models.backbone.backbones import fetch_weights

    console = Console()
    sources = list_sources(recipe)  # a wrong path is not worth a download
    weights = fetch_weights(recipe)
    print_plain(console, weights)
    prepared = prepare(recipe, console, sources)
    summarise(prepared.folder, console)
    print_plain(console, *draw_lines(recipe, prepared))
    print_plain(console, f"ready: {prepared.folder}")
    return 0
