"""The results of a comparison on the console."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adafilter_dist.compare.conclusion import conclusion, p_text
from adafilter_dist.compare.rows import Results
from adafilter_dist.compare.table import percent
from adafilter_dist.system.console import print_plain

_MOST = 8
"""Missing runs that are named."""


def print_results(console: Console, results: Results, folder: Path) -> None:
    """What came out, a row a contender, what is missing, and where the files are."""
    pictures = f"{results.pictures:,} test pictures" if results.pictures else "nothing finished"
    base = results.contender(results.base).title
    table = Table(
        title=f"{results.name}: {len(results.seeds)} seeds, {pictures}",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption="n: seeds; 95 % intervals; p corrected by Holm (docs/compare.md)",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for name in ("accuracy %", "n", f"minus {base}", "p"):
        table.add_column(name, justify="right", no_wrap=name != f"minus {base}")
    for each in results.contenders:
        difference = "" if each.name == results.base else percent(each.difference, "+")
        table.add_row(
            Text(each.title, style="bold" if each.differs else ""),
            percent(each.accuracy),
            f"{len(each.by_seed)}",
            difference,
            "" if each.p is None else p_text(each.p),
        )
    console.print()
    console.print(table)
    print_plain(console, conclusion(results))
    missing = [f"{each.title}: {why}" for each in results.contenders for why in each.problems]
    more = [f"and {len(missing) - _MOST} more"] if len(missing) > _MOST else []
    print_plain(console, *(f"missing: {line}" for line in [*missing[:_MOST], *more]))
    print_plain(console, f"results     {folder / 'results.md'}")
