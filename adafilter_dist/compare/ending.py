"""The end of a comparison: averages of its runs, the files of its results, their table."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from adafilter_dist.compare.averaged_runs import average_runs
from adafilter_dist.compare.console_table import print_results
from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.results import write_results
from adafilter_dist.compare.runs import all_runs, standing
from adafilter_dist.errors import UserError
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.progress import counting


def conclude(folder: Path, console: Console) -> int:
    """Average what the plan asks for once all runs are over, write the results, print them.

    Returns 1 where an average failed.
    """
    plan, say, code = Plan.read(folder), partial(print_plain, console), 0
    over = all(standing(run) != "open" for run in all_runs(plan, folder))
    for name in plan.averages if over else ():
        try:
            average_runs(folder, plan, name, say, partial(counting, console))
        except UserError as error:
            say(f"failed: {name}: {error}")
            code = 1
    print_results(console, write_results(folder), folder)
    return code
