"""The page of one run."""

from __future__ import annotations

import shlex
import traceback
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.report.page.accuracy import accuracy_section, facts
from adafilter_dist.report.page.blocks import Note, Page
from adafilter_dist.report.page.classes import classes_section
from adafilter_dist.report.page.gates import gate_facts, gates_section
from adafilter_dist.report.page.recipe_tables import what_was_run
from adafilter_dist.report.page.render import require_packages, write_page
from adafilter_dist.report.page.run_record import RunRecord, read_record
from adafilter_dist.report.page.training import curves_section, time_facts, time_section
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.console import print_plain
from adafilter_dist.version import __version__


def page_of(run: RunRecord) -> Page:
    """What the page of a run holds."""
    recipe = run.recipe
    return Page(
        title=f"{recipe.name}: {run.title}",
        subtitle=f"{recipe.model.name}, seed {recipe.seed}. {_state(run)}",
        facts=[*facts(run), *gate_facts(run), *time_facts(run)],
        sections=[
            accuracy_section(run),
            classes_section(run),
            gates_section(run),
            curves_section(run),
            time_section(run),
            what_was_run(run),
        ],
        footer=footer(),
        notes=[Note(f"Not all of the run folder can be read: {line}.") for line in run.problems],
    )


def _state(run: RunRecord) -> str:
    """How the run stood when the page was made."""
    if run.numbers.get("evaluation"):
        return "Trained, and tested once with the best model."
    step, total = run.status.get("step"), run.status.get("total_steps")
    where = f" at step {step:,} of {total:,}" if step and total else ""
    return f"Not finished: {run.status.get('state', 'state unknown')}{where}."


def footer() -> str:
    """By what and when the page was made."""
    now = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return f"Made by adafilter-dist {__version__}, {now}. Charts by Vega-Lite; no network is used."


def page_at_the_end(run: Path, recipe: Recipe, console: Console) -> Path | None:
    """RUN/report.html of a run that has just been tested; None, and why, where there is none.

    No fault of the page is one of the run: `adafilter report RUN` makes the page again.
    """
    again = shlex.join(["adafilter", "report", str(run)])
    try:
        return write_run_page(run, recipe)
    except UserError as error:
        print_plain(console, f"no page: {error}")
    except Exception:
        traceback.print_exc()
        print_plain(console, f"no page, by the fault above; the run is complete. Again: {again}")
    return None


def write_run_page(run: Path, recipe: Recipe | None = None, path: Path | None = None) -> Path:
    """RUN/report.html, or ``path``; UserError for what is no run, or cannot be written."""
    require_packages()
    return write_page(page_of(read_record(run, recipe)), path or RunFiles(run).page)
