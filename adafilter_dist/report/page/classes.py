"""Which classes are recognised, what they are taken for, and which pictures were surely wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.evaluate.wilson import wilson
from adafilter_dist.report.page import charts
from adafilter_dist.report.page.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    Gallery,
    Note,
    Section,
    Table,
)
from adafilter_dist.report.page.intervals import between, percent
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.report.page.thumbnails import thumbnails

_MOST_CLASSES = 120  # rows of a confusion matrix
_FEW_CLASSES = 15  # two charts of them are beside each other
_CONFUSIONS = 100
_PICTURES = 24

Counts = NDArray[np.int64]


def confusion_of(run: RunRecord) -> Counts | None:
    """int64 (C, C): rows are true classes, columns predictions; None where it is not known."""
    evaluation = run.numbers.get("evaluation")
    if not evaluation or not run.classes:
        return None
    confusion = np.asarray(evaluation["confusion"], np.int64)
    return confusion if len(confusion) == len(run.classes) else None


def classes_section(run: RunRecord) -> Section:
    """Accuracy by class, confusions, and the pictures that were surely wrong."""
    confusion = confusion_of(run)
    if confusion is None:
        return Section("classes", "Classes", [Note("Known once the run is tested.")])
    names = list(run.classes)
    recalls = _recalls(confusion, names)
    blocks: list[Block] = [
        _accuracy_chart(recalls),
        _confusion_chart(confusion, names),
        _class_table(recalls),
        *([_confusion_table(confusion, names)] if np.trace(confusion) < confusion.sum() else []),
        *_surely_wrong(run),
    ]
    return Section("classes", "Classes and mistakes", blocks)


def _recalls(confusion: Counts, names: Sequence[str]) -> list[tuple[str, int, int, str, int]]:
    """(class, right, pictures, most often taken for, how often), the worst first."""
    rows = []
    for i, (row, name) in enumerate(zip(confusion, names, strict=True)):
        if n := int(row.sum()):
            wrong = row.copy()
            wrong[i] = 0
            other = int(wrong.argmax())
            taken = (names[other], int(wrong[other])) if wrong[other] else ("", 0)
            rows.append((name, int(row[i]), n, *taken))
    return sorted(rows, key=lambda row: (row[1] / row[2], row[0]))


def _accuracy_chart(recalls: list[tuple[str, int, int, str, int]]) -> Figure:
    rows = []
    for place, (name, right, n, _, _) in enumerate(recalls):
        low, high = wilson(right, n)
        of = {"v": right / n, "low": low, "high": high}
        rows.append(
            {"i": place + 1, "name": name, "n": n, **{k: round(100 * v, 2) for k, v in of.items()}}
        )
    mean = 100 * sum(right / n for _, right, n, _, _ in recalls) / len(recalls)
    few = len(rows) <= 25
    spec = (
        charts.intervals(rows, "accuracy, %")
        if few
        else charts.ranked(rows, "classes, the worst first", "accuracy, %", round(mean, 2))
    )
    return Figure(
        "class-accuracy",
        "Accuracy by class",
        spec,
        f"Share of the pictures of a class that were recognised, with 95 % intervals (Wilson). "
        f"Mean of classes {mean:.1f} %.",
        height=charts.ROW_OF_INTERVALS * len(rows) + 60 if few else 280,
        wide=len(rows) > _FEW_CLASSES,
    )


def _class_table(recalls: list[tuple[str, int, int, str, int]]) -> Table:
    rows: list[list[Cell | str]] = []
    for name, right, n, other, often in recalls:
        p = right / n
        taken = f"{other} ({often})" if often else ""
        rows.append(
            [
                name,
                Cell(percent(p), p, bar=p),
                Cell(between(*wilson(right, n)), wilson(right, n)[0]),
                Cell(f"{n:,}", n),
                taken,
                Cell(f"{n - right:,}", n - right),
            ]
        )
    return Table(
        "class-table",
        "Classes",
        [
            *(Column("class"), Column("accuracy", True), Column("95 % interval", True)),
            *(Column("pictures", True), Column("most often taken for")),
            Column("mistakes", True),
        ],
        rows,
        caption="The worst first; the head of a column sorts.",
    )


def _confusion_chart(confusion: Counts, names: Sequence[str]) -> Figure:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    involved = wrong.sum(axis=0) + wrong.sum(axis=1)
    kept = np.arange(len(names))
    some = ""
    if len(names) > _MOST_CLASSES:
        kept = np.sort(np.argsort(-involved, kind="stable")[:_MOST_CLASSES])
        some = f" The {_MOST_CLASSES} classes with most mistakes, of {len(names):,}."
    part = confusion[np.ix_(kept, kept)]
    sizes = np.maximum(1, confusion.sum(axis=1)[kept])
    rows, columns = np.nonzero(part)
    chosen = [names[i] for i in kept.tolist()]
    height = 30 if len(chosen) <= _FEW_CLASSES else 18 if len(chosen) <= 30 else 8
    spec = charts.heat_map(
        {
            "y": [chosen[i] for i in rows],
            "x": [chosen[i] for i in columns],
            "v": [round(float(v), 4) for v in part[rows, columns] / sizes[rows]],
            "n": part[rows, columns].tolist(),
        },
        x="taken for",
        y="true class",
        value="share of the true class",
        rows=chosen,
        across=chosen,
        domain=(0, 1),
        kind="sqrt",
        extra=[("n", "pictures", ",d")],
        row_height=height,
    )
    return Figure(
        "confusion",
        "Confusion matrix",
        spec,
        f"Empty cells: no picture. The colour follows the square root, so that single mistakes are "
        f"seen.{some}",
        height=height * len(chosen) + 120,
        wide=len(chosen) > _FEW_CLASSES,
    )


def _confusion_table(confusion: Counts, names: Sequence[str]) -> Table:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    sizes = np.maximum(1, confusion.sum(axis=1))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    rows: list[list[Cell | str]] = []
    for cell in order:
        i, j = divmod(int(cell), len(names))
        if n := int(wrong[i, j]):
            share, back = n / sizes[i], int(wrong[j, i])
            rows.append(
                [
                    names[i],
                    names[j],
                    Cell(f"{n:,}", n),
                    Cell(percent(share), share, bar=float(share)),
                    Cell(f"{back:,}", back),
                ]
            )
    return Table(
        "confusions",
        "Worst confusions",
        [
            *(Column("true class"), Column("taken for"), Column("pictures", True)),
            *(Column("of the true class", True), Column("the other way round", True)),
        ],
        rows,
        shown=12,
    )


def _surely_wrong(run: RunRecord) -> list[Block]:
    title = "Most surely wrong"
    missing = missing_pictures(run)
    if missing is not None or run.outcomes is None or run.pictures is None:
        return [Note(f"{title}: {missing}")]
    wrong = np.flatnonzero(~run.outcomes.correct)
    if not len(wrong):
        return [Note("No picture of the test set was wrong.")]
    sure = run.pictures.confidences
    order = wrong[np.argsort(-sure[wrong], kind="stable")][:_PICTURES]
    lines = [
        [
            f"is {run.classes[run.outcomes.labels[i]]}",
            f"taken for {run.classes[run.outcomes.predictions[i]]}, {sure[i]:.1%}",
        ]
        for i in order
    ]
    caption = (
        f"The {len(order)} of {len(wrong):,} mistakes with the highest probability (softmax) of "
        "the wrong class. Wrong labels are often among them."
    )
    return [gallery(run, "surely-wrong", title, order.tolist(), lines, caption)]


def missing_pictures(run: RunRecord) -> str | None:
    """Why no pictures can be shown; None where they can."""
    if run.outcomes is None:
        return f"not known of this run. To measure it: adafilter evaluate {run.folder}"
    if run.pictures is None:
        return (
            "test-pictures.npz is missing: the run is of an earlier version, or was measured "
            f"without gates. To write it: adafilter evaluate {run.folder}"
        )
    return None


def gallery(
    run: RunRecord,
    id: str,
    title: str,
    positions: Sequence[int],
    lines: Sequence[Sequence[str]],
    caption: str,
) -> Block:
    """Pictures of the test set with their lines; a note with the lines where they are not here."""
    if run.prepared is None:
        place = run.recipe.data.prepared or run.recipe.data.root
        where = f" ({place})" if place is not None else ""
        return Note(
            f"{title}: the pictures are not shown, because the prepared data of this run are not "
            f"on this machine{where}."
        )
    return Gallery(id, title, thumbnails(run.prepared, positions, lines), caption)
