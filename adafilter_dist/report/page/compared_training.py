"""Curves and times of several runs over each other."""

from __future__ import annotations

from collections.abc import Sequence

from adafilter_dist.report.page import charts
from adafilter_dist.report.page.blocks import Block, Column, Figure, Note, Section, Table
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.report.page.training import cost_rows


def compared_curves(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """Validation, training loss and gates over the steps."""
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


def compared_times(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """Images a second, and the costs of a step."""
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
