"""What the gates chose: by layer, class, domain and picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from adafilter_dist.report.page.classes import gallery, missing_pictures
from adafilter_dist.report.page.intervals import percent
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.system.json_files import Row, number

_STILL = 0.01
"""Variance of a gate over pictures below which it hardly depends on them: 1 picture in 100."""
_MOST_CLASSES = 120
_MOST_DOMAINS = 30
_PICTURES = 12
_BINS = 20
_SERIES = 4  # domains that a histogram tells apart


_SAME_FOR_ALL = (
    "Each gate chose the same filter for all test pictures: what the layers decide by is not "
    "drawn. To drop the filters that were never chosen: adafilter compact RUN"
)


def deciding(between: float, within: float) -> str:
    """By what a layer chooses its filters, from the variances of its gates over pictures."""
    total = between + within
    if total < _STILL:
        return "hardly at all"
    return "by class" if between > within else "by picture"


def gate_facts(run: RunRecord) -> list[Fact]:
    """The share of fine-tuned filters, to read first."""
    gates = run.numbers.get("gates")
    if not gates:
        return []
    mean = float(gates["figures"]["mean"])
    return [Fact("fine-tuned filters", percent(mean), f"pre-trained {percent(1 - mean)}")]


def gates_section(run: RunRecord) -> Section:
    """Heat maps, variances, and the pictures that reuse most and least."""
    gates = run.numbers.get("gates")
    if not gates:
        return Section("gates", "Gates", [Note(_why_none(run))])
    layers: list[Row] = gates["layers"]
    blocks: list[Block] = []
    lead = _lead(gates, run)
    choices = run.pictures.gates if run.pictures is not None else None
    if choices is None or run.outcomes is None:
        blocks.append(
            Note(f"Gates by class and picture: {missing_pictures(run) or _why_none(run)}")
        )
    else:
        blocks += _by_class(run, choices.shares(), choices.layers)
        blocks += _by_domain(run, choices.shares(), choices.layers)
    if all(number(layer, "between") is not None for layer in layers):
        varying = any(float(layer["variance"]) > 0 for layer in layers)
        blocks.append(_variances(run, layers) if varying else Note(_SAME_FOR_ALL))
    if choices is not None and run.outcomes is not None:
        blocks.append(_reuse_histogram(run, choices.reuse()))
    blocks.append(_layer_table(run, layers))
    if choices is not None and run.outcomes is not None:
        blocks += _extremes(run, choices.reuse())
    return Section("gates", "Gates", blocks, lead=lead)


def _why_none(run: RunRecord) -> str:
    if run.recipe.method.name != "adafilter":
        return f"{run.title} has no gates."
    if not run.numbers:
        return "Known once the run is tested."
    if not run.recipe.evaluate.gates:
        return (
            "The gates were not measured (evaluate.gates=false). To measure them: adafilter "
            f"evaluate {run.folder} evaluate.gates=true"
        )
    return "In evaluation the gates of this control are a blend of both filters, and no choice."


def _lead(gates: Row, run: RunRecord) -> str:
    figures = gates["figures"]
    text = (
        "For each picture a gate chooses, for each filter, the pre-trained one or the fine-tuned "
        f"one. {percent(float(figures['mean']))} of the choices were fine-tuned filters. "
    )
    between, within = number(figures, "between"), number(figures, "within")
    if between is not None and within is not None:
        text += (
            f"A gate's variance over pictures is {between:.4f} between classes and {within:.4f} "
            "within them (0.25 at most together). "
        )
    if (bits := number(figures, "information")) is not None:
        text += (
            f"A filter's gate tells {bits:.2f} of the {figures['domain_entropy']:.2f} bits that "
            "name a picture's domain. "
        )
    if run.numbers.get("control") is None:
        text += (
            "A gate that was never trained also loses accuracy when gates are exchanged; only a "
            "control run with a frozen gate shows whether learning them was of use "
            "(adafilter evaluate RUN --control CONTROL)."
        )
    return text


def _means(
    shares: NDArray[np.float64], groups: NDArray[np.int64], number: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(number, L): mean share by group and layer, and how many pictures each group has."""
    sizes = np.bincount(groups, minlength=number)
    sums = np.zeros((number, shares.shape[1]))
    np.add.at(sums, groups, shares)
    return sums / np.maximum(1, sizes)[:, None], sizes


def _cells(
    means: NDArray[np.float64], layers: Sequence[str], groups: Sequence[str]
) -> dict[str, list[Any]]:
    """Columns of a heat map: rows are layers, columns groups."""
    own = means.mean(axis=0)
    rows, columns = np.divmod(np.arange(means.size), len(groups))
    values = means.T.reshape(-1)
    return {
        "y": [layers[i] for i in rows],
        "x": [groups[i] for i in columns],
        "v": [round(float(v), 3) for v in values],
        "d": [round(float(v), 3) for v in values - own[rows]],
    }


def color_range(means: NDArray[np.float64]) -> tuple[float, float]:
    """The range of colours: 0 to 1, or less where all shares are close together."""
    low, high = float(means.min()), float(means.max())
    if high - low > 0.3 or high == low:
        return 0.0, 1.0
    low, high = np.floor(low * 20) / 20, np.ceil(high * 20) / 20
    return float(low), float(high)


def _range(means: NDArray[np.float64]) -> str:
    """A sentence where the colours are not of 0 to 100 %."""
    low, high = color_range(means)
    narrow = (low, high) != (0.0, 1.0)
    return f" All colours lie between {low:.0%} and {high:.0%}: the shares are close." * narrow


def _heat_map(
    means: NDArray[np.float64], layers: Sequence[str], groups: Sequence[str], across: str
) -> dict[str, Any]:
    return charts.heat_map(
        _cells(means, layers, groups),
        x=across,
        y="layer",
        value="fine-tuned filters",
        rows=layers,
        across=groups,
        domain=color_range(means),
        extra=[("d", "against the layer's mean", "+.1%")],
    )


def _by_class(run: RunRecord, shares: NDArray[np.float64], layers: Sequence[str]) -> list[Block]:
    assert run.outcomes is not None
    means, sizes = _means(shares, run.outcomes.labels, len(run.classes))
    order = np.flatnonzero(sizes)
    order = order[np.argsort(means[order].mean(axis=1), kind="stable")]
    rows: list[list[Cell | str]] = []
    for i in order.tolist():
        share, least, most = (float(f(means[i])) for f in (np.mean, np.min, np.max))
        rows.append(
            [
                run.classes[i],
                Cell(f"{sizes[i]:,}", int(sizes[i])),
                Cell(percent(share), share, bar=share),
                Cell(percent(least), least),
                layers[int(means[i].argmin())],
                Cell(percent(most), most),
                layers[int(means[i].argmax())],
            ]
        )
    columns = [
        Column("class"),
        Column("pictures", True),
        Column("fine-tuned, mean of layers", True),
    ]
    columns += [Column("least", True), Column("in layer"), Column("most", True), Column("in layer")]
    table = Table("class-gates", "Gates by class in numbers", columns, rows, folded=True, shown=30)
    some = ""
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        some = (
            f" The {half} with the fewest and the {half} with the most, of {len(order):,} classes."
        )
        order = np.concatenate([order[:half], order[-half:]])
    names = [run.classes[i] for i in order.tolist()]
    figure = Figure(
        "gates-by-class",
        "Share of fine-tuned filters by layer and class",
        _heat_map(means[order], layers, names, "class"),
        "Layers in order of execution, from top to bottom; classes with the fewest fine-tuned "
        f"filters first. Mean over the test pictures of a class.{_range(means[order])}{some}",
        height=charts.ROW * len(layers) + 140,
        wide=True,
    )
    return [figure, table]


def _by_domain(run: RunRecord, shares: NDArray[np.float64], layers: Sequence[str]) -> list[Block]:
    domains = run.pictures.domains if run.pictures is not None else None
    if domains is None or not 1 < len(domains.names) <= _MOST_DOMAINS:
        return []
    means, sizes = _means(shares, domains.numbers, len(domains.names))
    order = np.flatnonzero(sizes)
    names = [domains.names[i] for i in order.tolist()]
    return [
        Figure(
            "gates-by-domain",
            "Share of fine-tuned filters by layer and domain",
            _heat_map(means[order], layers, names, "domain"),
            f"Mean over the test pictures of a domain.{_range(means[order])}",
            height=charts.ROW * len(layers) + 120,
        )
    ]


def _parts(layer: Row, n: int) -> tuple[float, float]:
    """Variance of a layer's gates (between, within) classes, without bias."""
    between = float(layer["between"])
    total = float(layer["variance"]) * n / max(1, n - 1)
    return between, max(0.0, total - between)


def _pictures(run: RunRecord) -> int:
    return int(run.numbers["evaluation"]["n"])


def _variances(run: RunRecord, layers: Sequence[Row]) -> Figure:
    rows, kinds = [], []
    for layer in layers:
        between, within = _parts(layer, _pictures(run))
        say = deciding(between, within)
        kinds.append(say)
        for order, (part, value) in enumerate(
            (("between classes", max(0.0, between)), ("within classes", within))
        ):
            rows.append(
                {"name": layer["name"], "part": part, "v": round(value, 5), "say": say, "o": order}
            )
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in ("by picture", "by class", "hardly at all")
    )
    return Figure(
        "gate-variance",
        "What the layers decide by",
        charts.stacked(
            rows,
            [layer["name"] for layer in layers],
            "variance over pictures",
            "layer",
        ),
        f"Of {len(layers)} layers {counts}. By class: more variance between than within classes "
        f"(together 0.25 at most). Hardly at all: below {_STILL}, as of gates that are otherwise "
        "for one picture in a hundred.",
        height=charts.ROW * len(layers) + 80,
    )


def _layer_table(run: RunRecord, layers: Sequence[Row]) -> Table:
    split = all(number(layer, "between") is not None for layer in layers)
    informed = all(number(layer, "information") is not None for layer in layers)
    rows: list[list[Cell | str]] = []
    for place, layer in enumerate(layers):
        mean, constant = float(layer["mean"]), float(layer["constant"])
        cells: list[Cell | str] = [
            Cell(str(place + 1), place),
            layer["name"],
            Cell(f"{layer['filters']:,}", layer["filters"]),
            Cell(percent(mean), mean, bar=mean),
        ]
        if split:
            between, within = _parts(layer, _pictures(run))
            cells += [
                Cell(f"{between:.4f}", between),
                Cell(f"{within:.4f}", within),
                deciding(between, within),
            ]
        cells.append(Cell(percent(constant), constant))
        if informed:
            cells.append(Cell(f"{layer['information']:.3f}", layer["information"]))
        rows.append(cells)
    columns = [Column("no.", True), Column("layer"), Column("filters", True)]
    columns.append(Column("fine-tuned", True))
    if split:
        columns += [Column("variance between classes", True), Column("within", True)]
        columns.append(Column("decides"))
    columns.append(Column("constant filters", True))
    columns += [Column("bits of domain", True)] if informed else []
    return Table("layers", "Layers", columns, rows, shown=12)


def _reuse_histogram(run: RunRecord, reuse: NDArray[np.float64]) -> Figure:
    domains = run.pictures.domains if run.pictures is not None else None
    groups = {"all pictures": np.ones(len(reuse), bool)}
    if domains is not None and 1 < len(domains.names) <= _SERIES:
        groups = {name: domains.numbers == i for i, name in enumerate(domains.names)}
    rows = []
    for name, chosen in groups.items():
        counts, edges = np.histogram(reuse[chosen], bins=_BINS, range=(0, 1))
        rows += [
            {"low": round(float(low), 3), "high": round(float(high), 3), "n": int(n), "group": name}
            for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
            if n
        ]
    low, high = (percent(float(np.quantile(reuse, q))) for q in (0.25, 0.75))
    most = f"half of the pictures are between {low} and {high}" if low != high else ""
    return Figure(
        "reuse",
        "How much pictures reuse the pre-trained network",
        charts.histogram(rows, "share of pre-trained filters", "pictures", list(groups)),
        "; ".join(filter(None, (f"Mean {percent(float(reuse.mean()))}", most))) + ".",
    )


def _extremes(run: RunRecord, reuse: NDArray[np.float64]) -> list[Block]:
    assert run.outcomes is not None and run.pictures is not None
    if float(np.ptp(reuse)) == 0:
        return [Note(f"All pictures reuse the same share, {percent(float(reuse[0]))}.")]
    blocks: list[Block] = []
    sure = run.pictures.confidences
    for id, title, sign in (
        ("reuse-most", "Reuse the pre-trained network most", -1),
        ("reuse-least", "Reuse it least", 1),
    ):
        # Of pictures with the same share those of which the network is surest.
        order = np.lexsort((-sure, sign * reuse))[:_PICTURES]
        end = float(reuse[order[0]])
        ties = int((reuse == end).sum())
        lines = [
            [
                f"{reuse[i]:.1%} pre-trained",
                f"is {run.classes[run.outcomes.labels[i]]}"
                + (
                    ""
                    if run.outcomes.correct[i]
                    else f", taken for {run.classes[run.outcomes.predictions[i]]}"
                ),
            ]
            for i in order
        ]
        caption = (
            f"{ties:,} pictures have {percent(end)}; these are the {len(order)} of which the "
            "network is surest."
            if ties > len(order)
            else ""
        )
        blocks.append(gallery(run, id, title, order.tolist(), lines, caption))
    return blocks
