"""Several runs by class, and the pictures that only one of two has right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adafilter_dist.report.page import charts
from adafilter_dist.report.page.blocks import Block, Cell, Column, Figure, Note, Section, Table
from adafilter_dist.report.page.classes import gallery, missing_pictures
from adafilter_dist.report.page.intervals import percent
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.system.counted import counted

_PICTURES = 12


def compared_classes(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
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
