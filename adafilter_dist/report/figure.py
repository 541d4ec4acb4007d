"""RUN/figures/gates.png: accuracies, curves and gates of a run on one page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from adafilter_dist.errors import printable
from adafilter_dist.evaluate import LayerGates
from adafilter_dist.report.results import Bar, Results
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.console import print_plain
from adafilter_dist.system.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _LIGHT_BLUE, _ORANGE, _GRAY = "#2166ac", "#6ba3cf", "#d6604d", "#85898f"
_DOMAINS = (_GRAY, _BLUE, _ORANGE, _LIGHT_BLUE)
_SEEN = 0.01
_MOST_NAMES = 70
_FEW = 20  # points of a curve that are marked one by one


def draw(run_dir: Path, results: Results, console: Console) -> Path | None:
    """Draw the figure and return its path; without matplotlib say how to get it, return None."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        hint = "no figure: matplotlib is not installed; pip install 'adafilter-dist[report]'"
        print_plain(console, hint)
        return None
    rows = RunFiles(run_dir).read_metrics()
    tall = results.gates is not None
    # Figure, not pyplot: no window system, no global state.
    bars = results.bars()
    # The upper row grows with the number of accuracies.
    upper = max(3.4, 0.42 * len(bars))
    height = upper + (5.6 if tall else 0.8)
    figure = Figure(figsize=(12, height), dpi=120, layout="constrained")
    figure.suptitle(
        f"{results.recipe}, seed {results.seed}: {results.split} set, "
        f"{results.evaluation.n:,} images",
        fontweight="bold",
    )
    grid = figure.add_gridspec(
        3 if tall else 1, 3, height_ratios=(upper, 2.7, 2.7) if tall else None
    )
    _accuracies(figure.add_subplot(grid[0, 0]), bars, results.split)
    _losses(figure.add_subplot(grid[0, 1]), rows)
    _accuracy_curves(figure.add_subplot(grid[0, 2]), rows)
    if tall:
        means = figure.add_subplot(grid[1, :])
        _gates(means, figure.add_subplot(grid[2, :], sharex=means), results)
    path = RunFiles(run_dir).figures / "gates.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_bytes(path, picture.getvalue())
    return path


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _accuracies(axes: Axes, bars: Sequence[Bar], split: str) -> None:
    heights = [100 * bar.top1 for bar in bars]
    colors = [_color(bar) for bar in bars]
    places = range(len(bars))
    axes.barh(places, heights, color=colors, height=0.62)
    lows, highs = zip(*(bar.interval for bar in bars), strict=True)
    below = [max(0.0, height - 100 * low) for height, low in zip(heights, lows, strict=True)]
    above = [max(0.0, 100 * high - height) for height, high in zip(heights, highs, strict=True)]
    axes.errorbar(heights, places, xerr=[below, above], fmt="none", ecolor="black")
    for place, bar in enumerate(bars):
        axes.text(
            100 * bar.interval[1] + 1.5, place, f"{100 * bar.top1:.1f}", va="center", fontsize=9
        )
    axes.set_yticks(places, [_folded(bar.title) for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 114)  # room for the figure beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("top-1 accuracy, %, and its 95 % interval", fontsize=8)
    _tidy(axes, f"accuracy on the {split} set")


def _color(bar: Bar) -> str:
    if bar.nested:
        return _LIGHT_BLUE
    return _GRAY if bar.title.startswith(("linear", "control")) else _BLUE


def _folded(title: str) -> str:
    return "\n".join(textwrap.wrap(title, 20))


def _series(rows: Sequence[dict[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    points = [
        (row["step"], row[key])
        for row in rows
        if row.get("kind") == kind
        and row.get(key) is not None
        and (kind == "train" or row.get("split") == "val")
    ]
    return [step for step, _ in points], [value for _, value in points]


def _losses(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    _curves(axes, rows, "loss", "loss", 1.0)
    axes.set_ylabel("cross entropy, nats", fontsize=8)
    _tidy(axes, "loss")


def _accuracy_curves(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    _curves(axes, rows, "accuracy", "top1", 100.0)
    axes.set_ylabel("top-1 accuracy, %", fontsize=8)
    _tidy(axes, "accuracy while training")


def _curves(
    axes: Axes, rows: Sequence[dict[str, Any]], train_key: str, val_key: str, unit: float
) -> None:
    for kind, key, color, label in (
        ("train", train_key, _GRAY, "training, augmented"),
        ("evaluation", val_key, _BLUE, "validation"),
    ):
        steps, values = _series(rows, kind, key)
        if steps:
            # A line through one point is not seen without a marker.
            marker = "o" if kind == "evaluation" or len(steps) <= _FEW else None
            scaled = [unit * value for value in values]
            axes.plot(steps, scaled, color=color, label=label, marker=marker, markersize=3)
    if axes.get_lines():
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "no rows in metrics.jsonl", ha="center", transform=axes.transAxes)
    axes.set_xlabel("step", fontsize=8)


def _gates(means: Axes, variances: Axes, results: Results) -> None:
    assert results.gates is not None
    layers = results.gates.layers
    places = range(len(layers))
    _means(means, layers)
    means.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
    means.set_ylim(0, 1)
    means.set_ylabel("mean gate", fontsize=8)
    means.tick_params(labelbottom=False)
    _tidy(means, "mean gate by layer, in order of execution (1: fine-tuned filter, 0: pre-trained)")

    variances.bar(places, [layer.variance for layer in layers], color=_ORANGE, width=0.75)
    variances.axhline(0.25, color="black", linewidth=0.6, linestyle=":")
    variances.set_ylim(0, 0.265)
    variances.set_ylabel("variance", fontsize=8)
    _tidy(variances, "variance of a gate over images, mean over the layer's filters (0.25 at most)")
    every = -(-len(layers) // _MOST_NAMES)
    shown = list(places)[::every]
    variances.set_xticks(shown, [layers[i].name for i in shown], rotation=90, fontsize=7)
    variances.set_xlim(-0.6, len(layers) - 0.4)


def _means(axes: Axes, layers: Sequence[LayerGates]) -> None:
    """A bar a layer, or one for each domain of the pictures."""
    names = list(layers[0].domains or {}) if layers else []
    if not 2 <= len(names) <= len(_DOMAINS):
        axes.bar(range(len(layers)), [layer.mean for layer in layers], color=_BLUE, width=0.75)
        return
    width = 0.75 / len(names)
    handles = []
    for number, name in enumerate(names):
        places = [i - 0.375 + width * (number + 0.5) for i in range(len(layers))]
        heights = [(layer.domains or {})[name] for layer in layers]
        handles.append(axes.bar(places, heights, color=_DOMAINS[number], width=width))
        for place, height in zip(places, heights, strict=True):
            if height < _SEEN:  # no bar is to be seen
                axes.plot(place, height, color=_DOMAINS[number], marker="_", clip_on=False)
    # By handles: names that begin with an underscore are shown, too.
    legend = axes.legend(
        handles,
        [f"domain {printable(name)}" for name in names],
        fontsize=8,
        ncols=len(names),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
