"""The last lines of a run."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from adafilter_dist import atomic
from adafilter_dist.report.results import TITLES, Results


def write_summary(run_dir: Path, results: Results) -> Path:
    """RUN/figures/summary.json: everything the summary says, as numbers."""
    path = run_dir / "figures" / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, results.to_dict())
    return path


def print_summary(
    console: Console, run_dir: Path, results: Results, figure: Path | None = None
) -> None:
    """Gates by layer, accuracies, run folder, figure, and the line that resumes the run."""
    if results.gates is not None:
        console.print()
        console.print(_gate_table(results))
    console.print()
    console.print(_accuracy_table(results))
    console.print()
    lines = [("run folder", str(run_dir))]
    if figure is not None:
        lines.append(("figure", str(figure)))
    lines.append(("resume", f"adafilter resume {run_dir}"))
    for name, value in lines:
        # A path must stay one piece, to be copied.
        console.print(f"{name:<11} {value}", markup=False, highlight=False, soft_wrap=True)


def _accuracy_table(results: Results) -> Table:
    n = results.evaluation.n
    table = Table(
        title=f"{results.recipe}, seed {results.seed}: {results.split} set, {n:,} images",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("")
    table.add_column("top-1 %", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for bar in results.bars():
        title = f"  {bar.title}" if bar.nested else bar.title
        table.add_row(title, f"{100 * bar.top1:.1f} ± {100 * bar.error:.1f}", bar.remark)
    evaluation = results.evaluation
    others = f"mean per class {100 * evaluation.mean_per_class:.1f} %"
    if evaluation.top5 is not None:
        others = f"top-5 {100 * evaluation.top5:.1f} %, {others}"
    table.caption = f"{TITLES[results.method]}: {others}, loss {evaluation.loss:.3f}"
    table.caption_justify = "left"
    return table


def _gate_table(results: Results) -> Table:
    assert results.gates is not None
    layers = results.gates.layers
    table = Table(
        title="gates by layer (1: fine-tuned filter, 0: pre-trained)",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption="variance over images, 0.25 at most; constant over all images",
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for name in ("filters", "mean", "variance", "constant"):
        table.add_column(name, justify="right")
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.filters}",
            f"{layer.mean:.2f}",
            f"{layer.variance:.3f}",
            f"{layer.constant:.0%}",
        )
    filters = sum(layer.filters for layer in layers)
    table.add_section()
    table.add_row(
        "all filters",
        f"{filters}",
        f"{sum(layer.mean * layer.filters for layer in layers) / filters:.2f}",
        f"{sum(layer.variance * layer.filters for layer in layers) / filters:.3f}",
        f"{sum(layer.constant * layer.filters for layer in layers) / filters:.0%}",
    )
    return table
