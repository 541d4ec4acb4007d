"""The page that compares several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from adafilter_dist.report.page.classes import gallery, missing_pictures
from adafilter_dist.report.page.intervals import between, counted, percent, points
from adafilter_dist.report.page.recipe_tables import environment_table, recipe_differences
from adafilter_dist.report.page.render import write_page
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.report.page.single import footer
from adafilter_dist.report.page.training import cost_rows
from adafilter_dist.system.json_files import number

_PICTURES = 12
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
            _curves(runs, names),
            _classes(runs, names),
            _gates(runs, names),
            _time(runs, names),
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


def _curves(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    blocks: list[Block] = []
    for id, title, kind, key, form in (
        ("val-accuracy", "Validation accuracy", "val", "top1", ".0%"),
        ("val-loss", "Validation loss", "val", "loss", ".3f"),
        ("train-loss", "Training loss", "train", "loss", ".3f"),
        ("gate-curve", "Mean gate, on validation pictures", "val", "gate_mean", ".2f"),
    ):
        series = {
            name: curve
            for run, name in zip(runs, names, strict=True)
            if (curve := run.curve(kind, key))
        }
        if series:
            domain = (0, 1) if form == ".2f" else None
            spec = charts.curves(series, title.lower(), form=form, domain=domain, every_name=names)
            blocks.append(Figure(id, title, spec, f"In {len(series)} of {len(runs)} runs."))
    if not blocks:
        blocks.append(Note("The runs hold no figures of training."))
    return Section("curves", "Training", blocks)


def _classes(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """Accuracy by class of all runs, and the first other run beside the base."""
    tested = [i for i, run in enumerate(runs) if run.outcomes is not None]
    base = runs[0].outcomes
    if base is None or len(tested) < 2:
        return Section("classes", "Classes", [Note("Known once two runs are tested.")])
    same = [
        i
        for i in tested
        if (other := runs[i].outcomes) is not None
        and other.classes == base.classes
        and np.array_equal(other.labels, base.labels)
    ]
    if len(same) < 2:
        return Section(
            "classes", "Classes", [Note("The runs were tested on other pictures or classes.")]
        )
    sizes = np.bincount(base.labels, minlength=len(base.classes))
    correct = {i: outcomes.correct for i in same if (outcomes := runs[i].outcomes) is not None}
    shares = {
        i: np.bincount(base.labels, right, len(base.classes)) / np.maximum(1, sizes)
        for i, right in correct.items()
    }
    second = same[1]
    change = shares[second] - shares[0]
    occurring = np.flatnonzero(sizes)
    order = occurring[np.argsort(change[occurring], kind="stable")]
    each = correct[second].astype(float) - correct[0]
    spread = _spreads(each, base.labels, sizes)
    rows = [
        {
            "i": place + 1,
            "name": base.classes[i],
            "n": int(sizes[i]),
            "v": round(100 * change[i], 2),
            "low": round(100 * (change[i] - 1.96 * spread[i]), 2),
            "high": round(100 * (change[i] + 1.96 * spread[i]), 2),
        }
        for place, i in enumerate(order)
    ]
    title = f"{names[second]} minus {names[0]}, by class"
    few = len(rows) <= 25
    label = "difference of accuracy, points"
    spec = (
        charts.intervals(rows, label, zero_line=True)
        if few
        else charts.ranked(rows, "classes, the largest loss first", label, 0)
    )
    blocks: list[Block] = [
        Figure(
            "class-differences",
            title,
            spec,
            f"With 95 % intervals, paired by picture. Of {len(rows)} such intervals about "
            f"{max(1, round(len(rows) / 20))} miss the truth by chance.",
            height=charts.ROW_OF_INTERVALS * len(rows) + 60 if few else 280,
            wide=True,
        ),
        Table(
            "class-table",
            "Accuracy by class",
            [
                Column("class"),
                *(Column(names[i], True) for i in same),
                Column("second minus first, points", True),
                Column("pictures", True),
            ],
            [
                [
                    base.classes[i],
                    *(Cell(percent(shares[k][i]), float(shares[k][i])) for k in same),
                    Cell(f"{100 * change[i]:+.1f}", float(change[i])),
                    Cell(f"{sizes[i]:,}", int(sizes[i])),
                ]
                for i in order
            ],
        ),
        *_differing(runs[0], runs[second], names[0], names[second]),
    ]
    return Section("classes", "Classes", blocks)


def _spreads(each: Any, labels: Any, sizes: Any) -> Any:
    """(C,): standard error of a class's mean difference; ``each`` (n,) is -1, 0 or 1."""
    n = np.maximum(1, sizes)
    mean = np.bincount(labels, each, len(sizes)) / n
    squares = np.bincount(labels, each**2, len(sizes)) / n
    return np.sqrt(np.maximum(0, squares - mean**2) / np.maximum(1, n - 1))


def _differing(one: RunRecord, other: RunRecord, first: str, second: str) -> list[Block]:
    """Pictures that one of two runs has right, where the other is surest of a wrong class."""
    blocks: list[Block] = []
    for id, right, wrong, right_name, wrong_name in (
        ("gained", other, one, second, first),
        ("lost", one, other, first, second),
    ):
        title = f"Right in {right_name}, wrong in {wrong_name}"
        if right.outcomes is None or wrong.outcomes is None or wrong.pictures is None:
            blocks.append(Note(f"{title}: {missing_pictures(wrong)}"))
            continue
        chosen = np.flatnonzero(right.outcomes.correct & ~wrong.outcomes.correct)
        sure = wrong.pictures.confidences
        order = chosen[np.argsort(-sure[chosen], kind="stable")][:_PICTURES]
        lines = [
            [
                f"is {wrong.classes[wrong.outcomes.labels[i]]}",
                f"taken for {wrong.classes[wrong.outcomes.predictions[i]]}, {sure[i]:.1%}",
            ]
            for i in order
        ]
        if not len(order):
            blocks.append(Note(f"{title}: no picture."))
            continue
        caption = (
            f"{len(order)} of {counted(len(chosen), 'picture')}: those of which {wrong_name} was "
            "surest, and wrong."
        )
        source = right if wrong.prepared is None else wrong
        blocks.append(gallery(source, id, title, order.tolist(), lines, caption))
    return blocks


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


def _time(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    blocks: list[Block] = []
    series = {
        name: speed
        for run, name in zip(runs, names, strict=True)
        if (speed := run.curve("train", "images_per_second"))
    }
    if series:
        spec = charts.curves(series, "images a second", form=",.0f", zero=True, every_name=names)
        blocks.append(Figure("speed", "Images a second", spec, "All ranks together.", wide=True))
    costs = [{str(what): value for what, value in cost_rows(run)} for run in runs]
    rows = [
        [what, *(each.get(what, "") for each in costs)]
        for what in dict.fromkeys(what for each in costs for what in each)
    ]
    blocks.append(
        Table("costs", "Costs", [Column("what"), *(Column(name) for name in names)], rows)
    )
    return Section("time", "Time", blocks)
