"""``adafilter report``: a run, or several compared, on one page for a browser."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.hints import no_run

HELP = "a run on one page for a browser; of several runs, how they differ"


def run(words: list[str]) -> int:
    """Parse ``RUN [RUN ...] [--out FILE]`` and write the page."""
    parser = Parser(
        "adafilter report",
        description=f"{HELP}. The page needs no network. A run writes its own at its end.",
        examples=[
            "adafilter report runs/demo/1a2b3c4d",
            "adafilter report runs/demo/1a2b3c4d runs/demo/5e6f7a8b --out compared.html",
        ],
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; the first is the base")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="default RUN/report.html; of several runs compared.html in the working folder",
    )
    options = parser.parse_args(words)
    mistakes = [wrong for word in options.runs if (wrong := no_run(word, ()))]
    if mistakes:
        raise UserError("\n".join(mistakes))
    folders = [Path(word).expanduser() for word in options.runs]
    from adafilter_dist.commands.out_file import out_file

    out = None if options.out is None else out_file(Path(options.out))
    print(_write(folders, out))
    return 0


def _write(folders: list[Path], out: Path | None) -> Path:
    from adafilter_dist.report.page.render import require_packages
    from adafilter_dist.report.page.single import write_run_page

    if len(folders) == 1:
        return write_run_page(folders[0], path=out)
    same = {folder.resolve() for folder in folders}
    if len(same) < len(folders):
        raise UserError("the same run is named twice")
    require_packages()
    from adafilter_dist.compare.paired_runs import paired_runs
    from adafilter_dist.report.page.comparison import write_comparison
    from adafilter_dist.report.page.run_record import read_record

    runs = [read_record(folder) for folder in folders]
    return write_comparison(runs, paired_runs(runs), out or Path("compared.html"))
