"""The last lines of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adafilter_dist.errors import printable
from adafilter_dist.evaluate import Difference, Evaluation, GateEvaluation, LayerGates
from adafilter_dist.evaluate.wilson import wilson
from adafilter_dist.methods.build import METHODS
from adafilter_dist.report.results import Results
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system import files
from adafilter_dist.system.console import print_plain

_FAR_OFF = 0.1
"""How far a layer's mean gate is from the median layer's to be shown by itself."""
_MOST_FAR = 3
_MEANING = (
    "variance over images, 0.25 at most; constant over all images; between classes: that part of "
    "the variance; bits of domain: mutual information of gate and domain"
)


def write_summary(run_dir: Path, results: Results) -> Path:
    """RUN/figures/summary.json: everything the summary says, as numbers."""
    path = RunFiles(run_dir).summary_numbers
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

    The gates in three lines, and one more each for domains, a control and a warning;
    ``every_gate`` adds the table of all layers.
    """
    console.print()
    console.print(_accuracy_table(results))
    if results.gates is not None:
        console.print()
        print_plain(console, *_gate_lines(results))
        if every_gate:
            console.print()
            console.print(_gate_table(results.gates.layers))
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
    bars = results.bars()
    differences = any(bar.less is not None for bar in bars)
    table.add_column("", overflow="fold")
    table.add_column("top-1 %", justify="right", no_wrap=True)
    if differences:
        table.add_column("run minus this", justify="right", no_wrap=True)
    for bar in bars:
        title = ", ".join(filter(None, (bar.title, bar.remark)))
        title = f"  {title}" if bar.nested else title
        less = [_points(bar.less)] if differences else []
        table.add_row(Text(title), _accuracy(bar.top1, bar.n), *less)
    evaluation = results.evaluation
    if results.control is not None:
        title = f"control: {METHODS[results.control.method].title}"
        _add_domains(table, title, results.control.evaluation)
    _add_domains(table, METHODS[results.method].title, evaluation)
    others = f"mean per class {100 * evaluation.mean_per_class:.1f} %"
    if evaluation.top5 is not None:
        others = f"top-5 {100 * evaluation.top5:.1f} %, {others}"
    caption = f"{METHODS[results.method].title}: {others}, loss {evaluation.loss:.3f}"
    caption += "; in brackets the 95 % interval over pictures (Wilson"
    caption += "; of differences, in points, a paired bootstrap)" if differences else ")"
    if (gates := results.gates) is not None:
        caption += f"; measured in {gates.forwards} passes (--no-gates: 1)"
        if results.control is None:
            caption += (
                "; a gate that was never trained also loses accuracy with another picture's gates: "
                "--control RUN compares with one (docs/measures.md)"
            )
    table.caption = caption
    table.caption_justify = "left"
    return table


def _add_domains(table: Table, method: str, evaluation: Evaluation) -> None:
    """The method's accuracy on each domain, and their mean."""
    if not evaluation.domains:
        return
    table.add_section()
    table.add_row(f"{method}, mean of domains", f"{100 * (evaluation.mean_of_domains or 0):.1f}")
    for domain in evaluation.domains:
        title = f"  {printable(domain.name)}, {domain.n:,} images"
        table.add_row(Text(title), _accuracy(domain.top1, domain.n))


def _accuracy(top1: float, n: int) -> str:
    low, high = wilson(round(top1 * n), n)
    return f"{100 * top1:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(less: Difference | None) -> str:
    if less is None:
        return ""
    return f"{100 * less.value:+.1f} [{100 * less.low:+.1f}, {100 * less.high:+.1f}]"


def _gate_lines(results: Results) -> list[str]:
    """The gates in all, the layers that differ, what moved since the start; domains and control."""
    gates = results.gates
    if gates is None:
        return []
    named = [("gates", _over_all(gates)), ("layers", _far_layers(gates.layers))]
    if (moved := results.movement) is not None:
        named.append(
            (
                "since start",
                f"mean {moved.start:.3f} to {moved.mean:.3f}, {moved.changed:.1%} of the bits "
                f"changed, a picture's share of fine-tuned filters moved by {moved.moved:.3f} "
                f"({moved.pictures} pictures of {moved.split})",
            )
        )
    figures = gates.figures
    if figures.information is not None and figures.domain_entropy is not None:
        means = ", ".join(f"{printable(one.name)} {one.mean:.3f}" for one in gates.domains)
        shared = f"{figures.information:.3f} of {figures.domain_entropy:.3f} bits shared with gates"
        named.append(("domains", f"mean gate in {means}; {shared} (mean over filters)"))
    if results.control is not None and (other := results.control.gates) is not None:
        line = f"gates' mean {other.mean:.3f}"
        if other.information is not None:
            line += f", {other.information:.3f} bits shared with the domain"
        named.append(("control", line))
    lines = [f"{name:<11} {line}" for name, line in named]
    warned = moved is not None and results.gate_warning
    return [*lines, f"warning: {results.gate_warning}"] if warned else lines


def _over_all(gates: GateEvaluation) -> str:
    figures, layers = gates.figures, gates.layers
    filters = sum(layer.filters for layer in layers)
    constant = sum(layer.constant * layer.filters for layer in layers) / filters
    line = f"mean {figures.mean:.3f} (1: fine-tuned), {constant:.0%} of {filters:,} constant"
    if figures.between is not None and figures.within is not None:
        line += f", variance {figures.between:.4f} between classes, {figures.within:.4f} within"
    return line


def _far_layers(layers: Sequence[LayerGates]) -> str:
    """The layers whose mean gate is far from the others', at most a few of them."""
    middle = median(layer.mean for layer in layers)
    line = f"median of {len(layers)} mean gates {middle:.2f}"
    far = [layer for layer in layers if abs(layer.mean - middle) > _FAR_OFF]
    if not far:
        return f"{line}, all within {_FAR_OFF} of it; every layer: --gates"
    farthest = sorted(far, key=lambda layer: abs(layer.mean - middle), reverse=True)[:_MOST_FAR]
    names = ", ".join(f"{layer.name} {layer.mean:.2f}" for layer in farthest)
    more = f" and {len(far) - len(farthest)} more" if len(far) > len(farthest) else ""
    return f"{line}; over {_FAR_OFF} off: {names}{more}; every layer: --gates"


def _gate_table(layers: Sequence[LayerGates]) -> Table:
    table = Table(
        title="gates by layer (1: fine-tuned filter, 0: pre-trained)",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=_MEANING,
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for name in ("filters", "mean", "variance", "constant", *_known(layers)):
        table.add_column(name, justify="right")
    _add_layers(table, layers)
    table.add_section()
    _add_all(table, layers)
    return table


def _known(layers: Sequence[LayerGates]) -> dict[str, str]:
    """Columns that only some data have: their titles, and the layers' fields."""
    columns = {"between classes": "between", "bits of domain": "information"}
    return {
        title: field
        for title, field in columns.items()
        if all(getattr(layer, field) is not None for layer in layers)
    }


def _add_layers(table: Table, layers: Sequence[LayerGates]) -> None:
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.filters}",
            f"{layer.mean:.2f}",
            f"{layer.variance:.3f}",
            f"{layer.constant:.0%}",
            *(f"{getattr(layer, field):.3f}" for field in _known(layers).values()),
        )


def _add_all(table: Table, layers: Sequence[LayerGates]) -> None:
    filters = sum(layer.filters for layer in layers)

    def mean(field: str) -> float:
        return float(sum(getattr(layer, field) * layer.filters for layer in layers) / filters)

    table.add_row(
        f"all {len(layers)} layers",
        f"{filters}",
        f"{mean('mean'):.2f}",
        f"{mean('variance'):.3f}",
        f"{mean('constant'):.0%}",
        *(f"{mean(field):.3f}" for field in _known(layers).values()),
    )
