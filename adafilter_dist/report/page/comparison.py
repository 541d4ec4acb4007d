"""The page that compares several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafilter_dist.report.page import charts
from adafilter_dist.report.page.accuracy import accuracies
from adafilter_dist.report.page.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Figure,
    Note,
    Page,
    Section,
    Table,
)
from adafilter_dist.report.page.compared_classes import compared_classes
from adafilter_dist.report.page.compared_training import compared_curves, compared_times
from adafilter_dist.report.page.intervals import between, percent, points
from adafilter_dist.report.page.recipe_tables import environment_table, recipe_differences
from adafilter_dist.report.page.render import write_page
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.report.page.single import footer
from adafilter_dist.system.json_files import number

_SPREAD = (
    "Intervals of single runs are 95 %, over the test pictures; they do not hold the spread "
    "between seeds."
)


@dataclass(frozen=True)
class Paired:
    """Top-1 of ``name`` minus that of ``base``, on the same pictures, in shares.

    ``low`` to ``high`` is the 95 % interval, ``how`` says over what; ``gained`` pictures only
    ``name`` has right, ``lost`` only ``base``, summed over ``seeds``. ``problem``: why there is no
    difference to be had.
    """

    name: str
    base: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    gained: int = 0
    lost: int = 0
    pictures: int = 0
    seeds: int = 0
    how: str = ""
    problem: str = ""


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run, no two the same: method and seed, where needed recipe and folder."""
    several = len({run.recipe.name for run in runs}) > 1
    labels = [f"{run.recipe.name}: {run.label}" if several else run.label for run in runs]
    count = Counter(labels)
    names = [
        f"{label} ({run.folder.name})" if count[label] > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [f"{label} ({run.folder})" for label, run in zip(labels, runs, strict=True)]
    return names


def comparison_page(runs: Sequence[RunRecord], paired: Sequence[Paired]) -> Page:
    """What the page of several runs holds; the first run, or its seeds, are the base."""
    names = run_names(runs)
    recipes = list(dict.fromkeys(run.recipe.name for run in runs))
    return Page(
        title=f"{', '.join(recipes)}: {len(runs)} runs compared",
        subtitle=f"Base: {names[0]}.",
        facts=[_fact(one) for one in paired if not one.problem],
        sections=[
            _accuracy(runs, names, paired),
            compared_curves(runs, names),
            compared_classes(runs, names),
            _gates(runs, names),
            compared_times(runs, names),
            Section(
                "run",
                "What was run",
                [*recipe_differences(runs, names), environment_table(runs, names)],
            ),
        ],
        footer=footer(),
    )


def write_comparison(runs: Sequence[RunRecord], paired: Sequence[Paired], path: Path) -> Path:
    """Write the page; UserError where it cannot be written."""
    return write_page(comparison_page(runs, paired), path)


def _fact(one: Paired) -> Fact:
    return Fact(
        f"{one.name} minus {one.base}",
        f"{100 * one.value:+.1f}",
        f"points, {points(one.low, one.high)}",
    )


def _accuracy(runs: Sequence[RunRecord], names: Sequence[str], paired: Sequence[Paired]) -> Section:
    tested = [(run, name) for run, name in zip(runs, names, strict=True) if _tested(run)]
    blocks: list[Block] = []
    if tested:
        rows: list[dict[str, Any]] = []
        for run, name in tested:
            own = accuracies(run)[0]
            rows.append(
                {"name": name, **{k: round(100 * own[k], 2) for k in ("low", "high")}}
                | {"v": round(100 * own["top1"], 2)}
            )
        blocks.append(
            Figure(
                "accuracy-chart",
                "Top-1 accuracy on the test set",
                charts.intervals(rows, "top-1 accuracy, %"),
                _SPREAD,
                height=charts.ROW_OF_INTERVALS * len(rows) + 60,
            )
        )
    known = [one for one in paired if not one.problem]
    if known:
        blocks.append(
            Figure(
                "difference-chart",
                f"Difference to {known[0].base}",
                charts.intervals(
                    [
                        {
                            "name": one.name,
                            "v": round(100 * one.value, 2),
                            "low": round(100 * one.low, 2),
                            "high": round(100 * one.high, 2),
                        }
                        for one in known
                    ],
                    "difference of top-1, points",
                    zero_line=True,
                ),
                f"Paired by picture. {'; '.join(dict.fromkeys(one.how for one in known))}.",
                height=charts.ROW_OF_INTERVALS * len(known) + 60,
            )
        )
        blocks.append(_paired_table(known))
    blocks += [Note(f"{one.name}: {one.problem}") for one in paired if one.problem]
    blocks.append(_run_table(runs, names))
    return Section("accuracy", "Accuracy", blocks)


def _tested(run: RunRecord) -> bool:
    return bool(run.numbers.get("evaluation"))


def _paired_table(known: Sequence[Paired]) -> Table:
    rows: list[list[Cell | str]] = [
        [
            f"{one.name} minus {one.base}",
            Cell(f"{100 * one.value:+.2f}", one.value),
            Cell(points(one.low, one.high), one.low),
            Cell(f"{one.gained:,}", one.gained),
            Cell(f"{one.lost:,}", one.lost),
            Cell(f"{one.pictures:,}", one.pictures),
            Cell(str(one.seeds), one.seeds),
        ]
        for one in known
    ]
    return Table(
        "differences",
        "Paired differences",
        [
            *(Column("difference"), Column("points", True), Column("95 % interval", True)),
            *(Column("right only in the first", True), Column("only in the second", True)),
            *(Column("pictures", True), Column("seeds", True)),
        ],
        rows,
    )


def _run_table(runs: Sequence[RunRecord], names: Sequence[str]) -> Table:
    rows: list[list[Cell | str]] = []
    for run, name in zip(runs, names, strict=True):
        evaluation = run.numbers.get("evaluation") or {}
        gates = (run.numbers.get("gates") or {}).get("figures") or {}
        cells: list[Cell | str] = [name]
        interval = Cell("not tested")
        if _tested(run):
            own = accuracies(run)[0]
            interval = Cell(between(own["low"], own["high"]), own["low"])
        cells.append(_share(evaluation, "top1"))
        cells.append(interval)
        cells += [_share(evaluation, "top5"), _share(evaluation, "mean_per_class")]
        loss = number(evaluation, "loss")
        cells += [Cell("" if loss is None else f"{loss:.3f}", loss), _share(gates, "mean")]
        cells += [Cell(str(run.recipe.seed), run.recipe.seed), str(run.folder)]
        rows.append(cells)
    return Table(
        "runs",
        "Runs",
        [
            *(Column("run"), Column("top-1", True), Column("95 % interval", True)),
            *(Column("top-5", True), Column("mean of classes", True), Column("loss", True)),
            *(Column("fine-tuned filters", True), Column("seed", True), Column("folder")),
        ],
        rows,
    )


def _share(row: dict[str, Any], key: str) -> Cell:
    value = number(row, key)
    return Cell("") if value is None else Cell(percent(value), value)


def _gates(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    gated = [
        (name, run.numbers["gates"]["layers"])
        for run, name in zip(runs, names, strict=True)
        if run.numbers.get("gates")
    ]
    if not gated:
        return Section("gates", "Gates", [Note("None of the runs has gates that were measured.")])
    series = {
        name: [(place + 1, float(layer["mean"])) for place, layer in enumerate(layers)]
        for name, layers in gated
    }
    # Networks may differ: a row holds the layers of one name.
    by_name = [{layer["name"]: float(layer["mean"]) for layer in layers} for _, layers in gated]
    places: dict[str, int] = {}
    for layers in by_name:
        for place, name in enumerate(layers):
            places.setdefault(name, place)
    rows: list[list[Cell | str]] = []
    for name, place in places.items():
        means = [layers.get(name) for layers in by_name]
        cells = [Cell("" if m is None else percent(m), m, bar=m) for m in means]
        rows.append([Cell(str(place + 1), place), name, *cells])
    return Section(
        "gates",
        "Gates",
        [
            Figure(
                "gates-by-layer",
                "Share of fine-tuned filters by layer",
                charts.curves(
                    series,
                    "fine-tuned filters",
                    form=".0%",
                    domain=(0, 1),
                    x="layer, in order of execution",
                    every_name=names,
                ),
                "Mean over the test pictures; 100 %: all filters are the fine-tuned ones.",
                wide=True,
            ),
            Table(
                "layers",
                "Layers",
                [Column("no.", True), Column("layer"), *(Column(name, True) for name in series)],
                rows,
                shown=12,
            ),
        ],
    )
