"""results.svg and results.png: accuracies and differences with their intervals, and the trials."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist.compare.rows import ContenderResult, Results
from adafilter_dist.compare.statistics import Estimate
from adafilter_dist.system.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by every kind of colour vision, and by their markers in print.
_BASE, _OTHER, _SEED = "#d6604d", "#2166ac", "#85898f"
_WIDE = 26


def write_figure(folder: Path, results: Results) -> bool:
    """Draw both files; False where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = results.contenders
    tuned = any(each.tuning for each in rows)
    panels = 3 if tuned else 2
    # Figure, not pyplot: no window system, no global state.
    figure = Figure(
        figsize=(1.8 + 3.4 * panels, 1.6 + 0.42 * len(rows)), dpi=120, layout="constrained"
    )
    all_axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _accuracies(all_axes[0], results)
    _differences(all_axes[1], results)
    if tuned:
        _trials(all_axes[2], rows)
    all_axes[0].set_yticks(
        range(len(rows)), ["\n".join(textwrap.wrap(each.title, _WIDE)) for each in rows]
    )
    all_axes[0].set_ylim(len(rows) - 0.5, -0.5)
    missing = f"; {results.missing} of {results.planned} runs missing" if results.missing else ""
    figure.suptitle(
        f"{results.name}: {len(results.seeds)} seeds, {results.pictures or 0:,} test pictures"
        f"{missing}",
        fontweight="bold",
        fontsize=10,
    )
    # The same bytes for the same results.
    with matplotlib.rc_context({"svg.hashsalt": "adafilter"}):
        for kind, about in (("svg", {"Date": None}), ("png", {"Software": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=about)
            write_bytes(folder / f"results.{kind}", picture.getvalue())
    return True


def _tidy(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(unit, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", linewidth=0.4)


def _accuracies(axes: Axes, results: Results) -> None:
    for place, each in enumerate(results.contenders):
        seeds = [100 * top1 for top1 in each.by_seed.values()]
        axes.plot(seeds, [place + 0.22] * len(seeds), "|", color=_SEED, markersize=6)
        base = each.name == results.base
        _point(axes, place, each.accuracy, _BASE if base else _OTHER, "D" if base else "o", True)
    fit_axis(axes, [each.accuracy for each in results.contenders])
    _tidy(axes, "accuracy", "top-1 on the test set, %, 95 % interval\n(grey: each seed)")


def _differences(axes: Axes, results: Results) -> None:
    axes.axvline(0, color=_BASE, linewidth=0.9)
    for place, each in enumerate(results.contenders):
        if each.name != results.base:
            _point(axes, place, each.difference, _OTHER, "o", each.differs)
    fit_axis(axes, [each.difference for each in results.contenders])
    title = results.contender(results.base).title
    _tidy(axes, f"minus {title}", "points, 95 % interval\n(filled: corrected p < 0.05)")


def _point(
    axes: Axes, place: int, estimate: Estimate | None, color: str, marker: str, filled: bool
) -> None:
    if estimate is None:
        return
    if estimate.low is None or estimate.high is None:
        # One seed has no interval: a cross, so that nobody takes it for a narrow one.
        axes.plot(100 * estimate.value, place, "x", color=color, markersize=6)
        return
    sides = [[100 * (estimate.value - estimate.low)], [100 * (estimate.high - estimate.value)]]
    axes.errorbar(
        100 * estimate.value,
        place,
        xerr=sides,
        fmt=marker,
        color=color,
        markerfacecolor=color if filled else "white",
        markersize=5,
        capsize=2.5,
        linewidth=1.2,
    )


def fit_axis(axes: Axes, estimates: Sequence[Estimate | None]) -> None:
    """Fit the axis to what has an interval; a single value beyond it is an arrow with a number.

    One soup with a diverged member would else press all intervals into a corner.
    """
    ends = [
        100 * end for each in estimates if each for end in (each.low, each.high) if end is not None
    ]
    if not ends:
        return
    margin = 0.35 * (max(ends) - min(ends) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin
    outside = {
        place: 100 * each.value
        for place, each in enumerate(estimates)
        if each and not low <= 100 * each.value <= high
    }
    if not outside:
        return
    axes.set_xlim(low, high)
    for place, value in outside.items():
        left = value < low
        axes.annotate(
            f"{value:.1f}",
            (0 if left else 1, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(22 if left else -22, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "->", "color": _OTHER},
            ha="left" if left else "right",
            va="center",
            fontsize=8,
        )


def _trials(axes: Axes, rows: Sequence[ContenderResult]) -> None:
    for place, each in enumerate(rows):
        if each.tuning is not None:
            values = [100 * value for value in each.tuning.validations]
            axes.plot(values, [place] * len(values), "|", color=_SEED, markersize=8)
            axes.plot(100 * each.tuning.best, place, "^", color=_OTHER, markersize=5)
    _tidy(axes, "trials of the tuning", "top-1 on the validation set, %\n(triangle: chosen)")
