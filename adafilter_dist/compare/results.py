"""The results of a comparison, finished or not, and the files that show them."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.compare.collected import collect
from adafilter_dist.compare.conclusion import conclusion
from adafilter_dist.compare.figure import write_figure
from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.rows import Results
from adafilter_dist.compare.summarise import summarise
from adafilter_dist.compare.table import csv_text, markdown
from adafilter_dist.system.files import write_json, write_text


def read_results(folder: Path) -> Results:
    """Read the comparison in ``folder`` as far as it got; UserError where there is no plan."""
    plan = Plan.read(folder)
    return summarise(plan.name, plan.base, plan.seeds, collect(folder, plan))


def write_results(folder: Path) -> Results:
    """Write results.json, .csv, .md, and with matplotlib .svg and .png, of what is there so far.

    Reads the runs and trains nothing. UserError where there is no plan.
    """
    results = read_results(folder)
    rows = {"format": 1, "conclusion": conclusion(results), **results.to_dict()}
    write_json(folder / "results.json", rows)
    write_text(folder / "results.csv", csv_text(results))
    drawn = write_figure(folder, results)
    write_text(folder / "results.md", markdown(results, figure=drawn))
    return results
