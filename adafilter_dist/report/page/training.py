"""Curves of training, and what it cost in time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

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
from adafilter_dist.report.page.intervals import percent, span
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.system.counted import counted
from adafilter_dist.system.json_files import number


def _present(series: charts.Series) -> charts.Series:
    return {name: points for name, points in series.items() if points}


def curves_section(run: RunRecord) -> Section:
    """Loss, accuracy, rate and gates over the steps; restarts as dashed lines."""
    restarts = run.restarts()
    marked = f" Dashed lines: the run went on at step {_listed(restarts)}." if restarts else ""
    wanted: list[tuple[str, str, str, charts.Series, str, str]] = [
        (
            *("loss", "Loss", "cross entropy, nats"),
            {"training": run.curve("train", "loss"), "validation": run.curve("val", "loss")},
            "Training: mean over a logging interval, with augmentation and smoothing.",
            ".3f",
        ),
        (
            *("accuracy-curve", "Accuracy", "top-1 accuracy"),
            {"training": run.curve("train", "accuracy"), "validation": run.curve("val", "top1")},
            "The best model is the one with the highest validation accuracy.",
            ".0%",
        ),
        (
            *("gate-curve", "Gates", "share"),
            {
                "mean gate": run.curve("val", "gate_mean"),
                "bits changed since the start": run.curve("val", "gate_changed"),
            },
            "On a few fixed validation pictures. 1: all filters are the fine-tuned ones.",
            ".2f",
        ),
        (
            *("rate", "Learning rate", "learning rate"),
            {"learning rate": run.curve("train", "lr")},
            "Of the backbone; gate and head may have their own.",
            ".2~e",
        ),
    ]
    blocks: list[Block] = []
    for id, title, y, series, caption, form in wanted:
        if present := _present(series):
            domain = (0, 1) if form in (".0%", ".2f") else None
            spec = charts.curves(present, y, restarts=restarts, form=form, domain=domain)
            blocks.append(Figure(id, title, spec, caption + marked))
    table = _validation(run)
    blocks += [table] if table.rows else []
    if not blocks:
        blocks.append(Note("metrics.jsonl holds no figures of training."))
    return Section("curves", "Training", blocks)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps[:12]) + (", ..." if len(steps) > 12 else "")


def _validation(run: RunRecord) -> Table:
    rows: list[list[Cell | str]] = []
    for row in run.rows:
        top1, loss, step = number(row, "top1"), number(row, "loss"), number(row, "step")
        if row.get("split") == "val" and top1 is not None and step is not None:
            shown = "" if loss is None else f"{loss:.3f}"
            epoch = number(row, "epoch")
            cells = [Cell(f"{step:,.0f}", step), Cell(_epoch(epoch), epoch)]
            rows.append([*cells, Cell(percent(top1), top1, bar=top1), Cell(shown, loss)])
    columns = [Column(name, True) for name in ("step", "epoch", "top-1", "loss")]
    return Table("validations", "Validation in numbers", columns, rows, folded=True, shown=60)


def _epoch(epoch: float | None) -> str:
    return "" if epoch is None else f"{epoch + 1:.0f}"


def seconds_of(run: RunRecord) -> float | None:
    """How long all attempts took together; None where their times are not known."""
    total = sum((end - start).total_seconds() for start, end in run.attempt_times().values() if end)
    return total or None


def time_facts(run: RunRecord) -> list[Fact]:
    """Time and restarts, to read first."""
    rows = []
    if (seconds := seconds_of(run)) is not None:
        steps = run.status.get("step")
        rows.append(
            Fact("time of all attempts", span(seconds), counted(steps, "step") if steps else "")
        )
    lost = sum(attempt.steps_lost or 0 for attempt in run.attempts)
    restarts = max(0, len(run.attempts) - 1)
    rows.append(Fact("restarts", f"{restarts}", f"{counted(lost, 'step')} lost"))
    return rows


def time_section(run: RunRecord) -> Section:
    """Images a second, waiting for data, and the costs of a step."""
    blocks: list[Block] = []
    speed = run.curve("train", "images_per_second")
    waits = run.curve("train", "data_wait")
    restarts = run.restarts()
    if speed:
        spec = charts.curves(
            {"images a second": speed}, "images a second", restarts=restarts, form=",.0f", zero=True
        )
        middle = median(value for _, value in speed)
        blocks.append(
            Figure("speed", "Images a second", spec, f"All ranks together; median {middle:,.0f}.")
        )
    if waits:
        spec = charts.curves(
            {"waiting for data": waits},
            "share of time",
            restarts=restarts,
            form=".0%",
            domain=(0, 1),
        )
        middle = median(value for _, value in waits)
        blocks.append(
            Figure(
                "wait",
                "Waiting for data",
                spec,
                f"Share of the time in which the first rank waited for pictures; median "
                f"{percent(middle)}. Much of it: more loader workers, FFCV or smaller stored "
                "pictures help.",
            )
        )
    if rows := cost_rows(run):
        blocks.append(Table("costs", "Costs", [Column("what"), Column("value")], rows))
    if not blocks:
        blocks.append(Note("metrics.jsonl holds no times."))
    return Section("time", "Time", blocks)


def cost_rows(run: RunRecord) -> list[list[Cell | str]]:
    """What training took, as (what, how much)."""
    rows: list[list[Cell | str]] = []
    if (seconds := seconds_of(run)) is not None:
        rows.append(["time of all attempts", span(seconds)])
    if speed := run.curve("train", "images_per_second"):
        rows.append(["images a second, median", f"{median(v for _, v in speed):,.0f}"])
    if waits := run.curve("train", "data_wait"):
        rows.append(
            ["share of time waiting for data, median", percent(median(v for _, v in waits))]
        )
    cost = run.numbers.get("cost") or {}
    if (step := number(cost, "step_seconds")) is not None:
        rows.append(["a step", f"{1000 * step:,.1f} ms"])
    if (cpu := number(cost, "step_cpu_seconds")) is not None:
        rows.append(["CPU time of a step, first rank", f"{1000 * cpu:,.1f} ms"])
    if (memory := number(cost, "peak_memory")) is not None:
        where = "on the device" if cost.get("memory_of") == "device" else "of the process"
        rows.append([f"peak memory {where}, first rank", f"{memory / 2**20:,.0f} MiB"])
    if (trained := number(cost, "trained_parameters")) is not None:
        rows.append(["trained parameters", f"{trained:,.0f}"])
    return rows
