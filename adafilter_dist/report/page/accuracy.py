"""Accuracies of a run on the test set, beside its controls and ablations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adafilter_dist.errors import UserError
from adafilter_dist.evaluate.wilson import wilson
from adafilter_dist.methods.build import METHODS
from adafilter_dist.report.page import charts
from adafilter_dist.report.page.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Figure,
    Note,
    Section,
    Table,
)
from adafilter_dist.report.page.intervals import between, percent, points
from adafilter_dist.report.page.run_record import RunRecord, method_title
from adafilter_dist.report.page.words import title_of, words_table
from adafilter_dist.run.kept_recipe import read_kept
from adafilter_dist.system.json_files import Row, number, whole

_COLORS = (
    ("run", "var(--c1)"),
    ("control", "var(--c2)"),
    ("other gates", "var(--c3)"),
    ("domain", "var(--c4)"),
)
_CAVEAT = (
    "Intervals are 95 %, over the test pictures of this one run (Wilson; differences: bootstrap, "
    "paired by picture). They do not hold the spread between seeds."
)


def facts(run: RunRecord) -> list[Fact]:
    """The accuracies to read first; none where the run was not tested."""
    evaluation = run.numbers.get("evaluation")
    if not evaluation:
        val = [value for _, value in run.curve("val", "top1")]
        return [Fact("best top-1 in validation", percent(max(val)))] if val else []
    n, top1 = int(evaluation["n"]), float(evaluation["top1"])
    rows = [Fact("top-1 accuracy", percent(top1), between(*wilson(round(top1 * n), n)))]
    if (top5 := number(evaluation, "top5")) is not None:
        rows.append(Fact("top-5 accuracy", percent(top5), between(*wilson(round(top5 * n), n))))
    rows.append(_mean_per_class(evaluation))
    rows.append(Fact("test pictures", f"{n:,}", f"{len(evaluation['confusion'])} classes"))
    return rows


def _mean_per_class(evaluation: Row) -> Fact:
    """Each class counts the same; its interval from the classes' binomial variances."""
    variance, classes = 0.0, 0
    for right, row in ((row[i], row) for i, row in enumerate(evaluation["confusion"])):
        if n := sum(row):
            # With one picture too many of either kind, so that no class is without variance.
            p = (right + 1) / (n + 2)
            variance += p * (1 - p) / n
            classes += 1
    mean, half = float(evaluation["mean_per_class"]), 1.96 * math.sqrt(variance) / max(1, classes)
    return Fact("mean of classes", percent(mean), between(max(0, mean - half), min(1, mean + half)))


def accuracy_section(run: RunRecord) -> Section:
    """Accuracy beside controls, other gates and domains."""
    numbers = run.numbers
    if not numbers.get("evaluation"):
        why = (
            "The recipe has evaluate.test=false."
            if not run.recipe.evaluate.test
            else f"To measure it once there is a best model: adafilter evaluate {run.folder}"
        )
        return Section("accuracy", "Accuracy", [Note(f"Not tested on the test set. {why}")])
    rows = accuracies(run)
    groups = {row["group"] for row in rows}
    chart = charts.intervals(
        [
            {
                "name": row["name"],
                "v": round(100 * row["top1"], 2),
                "low": round(100 * row["low"], 2),
                "high": round(100 * row["high"], 2),
                "group": row["group"],
            }
            for row in rows
        ],
        "top-1 accuracy, %",
        colors=[(name, color) for name, color in _COLORS if name in groups],
    )
    blocks: list[Block] = [
        Figure(
            "accuracy-chart",
            "Top-1 accuracy",
            chart,
            f"{run.title} on the {numbers['split']} set, with its controls and with other gates in "
            f"the place of its own. {_CAVEAT}",
            height=charts.ROW_OF_INTERVALS * len(rows) + 110,
            wide=True,
        ),
        _table(rows),
    ]
    words = words_table((numbers.get("gates") or {}).get("ablations", {}), groups)
    blocks += [words] if words.rows else []
    return Section("accuracy", "Accuracy", blocks)


def accuracies(run: RunRecord) -> list[dict[str, Any]]:
    """Rows of name, group, top1, low, high, n and less: the run, controls, domains, other gates."""
    numbers = run.numbers
    evaluation = numbers["evaluation"]
    rows = [_row(run.title, "run", evaluation)]
    if control := numbers.get("control"):
        less = control["run_minus_control"]
        rows.append(_row(f"control: {_control_title(control)}", "control", control, less))
    if probe := numbers.get("probe"):
        rows.append(_row("linear probe on frozen features", "control", probe["test"]))
    for domain in evaluation.get("domains", []):
        rows.append(_row(f"domain {domain['name']}", "domain", domain))
    if gates := numbers.get("gates"):
        for name, one in gates["ablations"].items():
            rows.append(_row(title_of(name), "other gates", one, one["learned_minus_this"]))
    return rows


def _row(name: str, group: str, evaluation: Row, less: Row | None = None) -> dict[str, Any]:
    n, top1 = whole(evaluation, "n") or 1, number(evaluation, "top1") or 0.0
    low, high = wilson(round(top1 * n), n)
    return {
        **{"name": name, "group": group, "top1": top1, "low": low, "high": high, "n": n},
        "less": less,
    }


def _control_title(control: Row) -> str:
    """The control's method, with how its gate was set where its folder is still there."""
    try:
        return method_title(read_kept(Path(str(control["run"])).expanduser()))
    except (UserError, OSError):
        return METHODS[control["method"]].title


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    cells: list[list[Cell | str]] = []
    for row in rows:
        less = row["less"]
        cells.append(
            [
                row["name"],
                row["group"],
                Cell(percent(row["top1"]), row["top1"], bar=row["top1"]),
                Cell(between(row["low"], row["high"]), row["low"]),
                Cell("" if less is None else f"{100 * less['value']:+.1f}", less and less["value"]),
                Cell(
                    "" if less is None else points(less["low"], less["high"]), less and less["low"]
                ),
                Cell(f"{row['n']:,}", row["n"]),
            ]
        )
    return Table(
        "accuracies",
        "The same in numbers",
        [
            *(Column("of"), Column("kind"), Column("top-1", True), Column("95 % interval", True)),
            *(Column("run minus this, points", True), Column("95 % interval", True)),
            Column("pictures", True),
        ],
        cells,
        folded=True,
        shown=40,
    )
