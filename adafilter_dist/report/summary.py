"""The last lines of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from adafilter_dist.errors import printable
from adafilter_dist.evaluate import Evaluation, LayerGates
from adafilter_dist.methods.build import METHODS
from adafilter_dist.report.results import Results
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system import files
from adafilter_dist.system.console import print_plain

_FAR_OFF = 0.1
"""How far a layer's mean gate is from the median layer's to be shown by itself."""
_MOST_FAR = 6


def write_summary(run_dir: Path, results: Results) -> Path:
    """RUN/figures/summary.json: everything the summary says, as numbers."""
    path = RunFiles(run_dir).figures / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, results.to_dict())
    return path


def write_gates(run_dir: Path, results: Results) -> Path | None:
    """RUN/figures/gates.txt: the gates of every layer as a table; None where there are none."""
    if results.gates is None:
        return None
    path = RunFiles(run_dir).gates
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    Console(file=text, width=100).print(_gate_table(results.gates.layers))
    files.write_text(path, text.getvalue())
    return path


def print_summary(
    console: Console,
    run_dir: Path,
    results: Results,
    files: Mapping[str, Path | None],
    *,
    every_gate: bool = False,
) -> None:
    """Accuracies, gates, run folder, and ``files`` by what they hold (None: there is no such).

    Of the gates only what differs from the rest, unless ``every_gate``.
    """
    console.print()
    console.print(_accuracy_table(results))
    if results.gates is not None:
        console.print()
        layers = results.gates.layers
        console.print(_gate_table(layers) if every_gate else _short_gate_table(layers))
    console.print()
    paths = [("run folder", run_dir), *files.items()]
    print_plain(console, *(f"{name:<11} {path}" for name, path in paths if path is not None))


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
    _add_domains(table, METHODS[results.method].title, evaluation)
    others = f"mean per class {100 * evaluation.mean_per_class:.1f} %"
    if evaluation.top5 is not None:
        others = f"top-5 {100 * evaluation.top5:.1f} %, {others}"
    table.caption = f"{METHODS[results.method].title}: {others}, loss {evaluation.loss:.3f}"
    table.caption_justify = "left"
    return table


def _add_domains(table: Table, method: str, evaluation: Evaluation) -> None:
    """The method's accuracy on each domain, and their mean."""
    if not evaluation.domains:
        return
    table.add_section()
    table.add_row(f"{method}, mean of domains", f"{100 * (evaluation.mean_of_domains or 0):.1f}")
    for domain in evaluation.domains:
        error = math.sqrt(domain.top1 * (1 - domain.top1) / domain.n)
        accuracy = f"{100 * domain.top1:.1f} ± {100 * error:.1f}"
        table.add_row(f"  {printable(domain.name)}", accuracy, f"{domain.n:,} images")


def _gate_table(layers: Sequence[LayerGates]) -> Table:
    table = _empty_gate_table("variance over images, 0.25 at most; constant over all images")
    _add_layers(table, layers)
    table.add_section()
    _add_all(table, layers)
    return table


def _short_gate_table(layers: Sequence[LayerGates]) -> Table:
    """All layers in one row, and those whose mean gate is far from the others'."""
    far = _far_off(layers)
    which = "those" if far else "none"
    table = _empty_gate_table(
        f"{which} over {_FAR_OFF} off the median layer's mean; all of them: --gates"
    )
    _add_all(table, layers)
    if far:
        table.add_section()
        _add_layers(table, far)
    return table


def _far_off(layers: Sequence[LayerGates]) -> list[LayerGates]:
    """The layers whose mean gate is farthest from the median layer's, in order of execution."""
    middle = median(layer.mean for layer in layers)
    farthest = sorted(layers, key=lambda layer: abs(layer.mean - middle), reverse=True)[:_MOST_FAR]
    far = [layer.name for layer in farthest if abs(layer.mean - middle) > _FAR_OFF]
    return [layer for layer in layers if layer.name in far]


def _empty_gate_table(caption: str) -> Table:
    table = Table(
        title="gates by layer (1: fine-tuned filter, 0: pre-trained)",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=caption,
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for name in ("filters", "mean", "variance", "constant"):
        table.add_column(name, justify="right")
    return table


def _add_layers(table: Table, layers: Sequence[LayerGates]) -> None:
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.filters}",
            f"{layer.mean:.2f}",
            f"{layer.variance:.3f}",
            f"{layer.constant:.0%}",
        )


def _add_all(table: Table, layers: Sequence[LayerGates]) -> None:
    filters = sum(layer.filters for layer in layers)
    table.add_row(
        f"all {len(layers)} layers",
        f"{filters}",
        f"{sum(layer.mean * layer.filters for layer in layers) / filters:.2f}",
        f"{sum(layer.variance * layer.filters for layer in layers) / filters:.3f}",
        f"{sum(layer.constant * layer.filters for layer in layers) / filters:.0%}",
    )
