"""Charts as Vega-Lite specifications. Colours are CSS variables, so that the page's theme holds.

Field names are ours; names of classes, layers and domains are values only, which Vega-Lite draws
and shows as text.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from adafilter_dist.report.page.blocks import Spec

SERIES = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3])
ROW = 15  # pixels of a row of a heat map
ROW_OF_INTERVALS = 32
_MOST_POINTS = 400
_FEW = 30  # points of a curve that are marked one by one

Series = dict[str, list[tuple[int, float]]]


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most a few hundred points of a curve: means over equal numbers of neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def curves(
    series: Series,
    y: str,
    *,
    restarts: Iterable[int] = (),
    form: str = ".3f",
    zero: bool = False,
    domain: Sequence[float] | None = None,
    x: str = "step",
    every_name: Sequence[str] = (),
) -> Spec:
    """Lines over steps. ``restarts`` are marked by dashed vertical lines.

    ``every_name``: all lines of the page, so that each has the same colour in every chart.
    """
    values, few = [], []
    for name, points in series.items():
        kept = thinned(points)
        few += [name] if len(kept) <= _FEW else []
        values += [{"s": step, "v": _rounded(value), "r": name} for step, value in kept]
    names = list(every_name or series)
    across = {"field": "s", "type": "quantitative", "title": x, "axis": _whole_axis(values)}
    scale: dict[str, Any] = {"zero": zero}
    if domain is not None:
        scale = {"domain": list(domain)}
    vertical = {"field": "v", "type": "quantitative", "title": y, "scale": scale}
    vertical["axis"] = {"format": form}
    legend: Spec | None = None
    if len(series) > 1:
        legend = {"title": None, "orient": "top", "columns": 1, "symbolType": "stroke"}
        legend["values"] = list(series)
    color = {
        "field": "r",
        "type": "nominal",
        "scale": {"domain": names, "range": list(_cycled(SERIES, len(names)))},
        "legend": legend,
    }
    dash = {
        "field": "r",
        "type": "nominal",
        "scale": {"domain": names, "range": _dashes(len(names))},
        "legend": legend,
    }
    tooltip = [
        {"field": "r", "type": "nominal", "title": "curve"},
        {"field": "s", "type": "quantitative", "title": x, "format": ",d"},
        {"field": "v", "type": "quantitative", "title": y, "format": form},
    ]
    hover = {"condition": {"param": "hover", "empty": False, "value": 1}}
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "strokeWidth": 1.8, "interpolate": "linear"},
            "encoding": {"x": across, "y": vertical, "color": color, "strokeDash": dash},
        },
        {
            "params": [
                {
                    "name": "hover",
                    "select": {
                        "type": "point",
                        "on": "pointerover",
                        "nearest": True,
                        "clear": "pointerout",
                    },
                }
            ],
            "mark": {"type": "point", "filled": True, "size": 45},
            "encoding": {
                "x": across,
                "y": vertical,
                "color": color,
                "opacity": {**hover, "value": 0} if not few else _shown_if(few),
                "tooltip": tooltip,
            },
        },
    ]
    stops = sorted(set(restarts))
    if stops:
        layers.insert(
            0,
            {
                "data": {"values": [{"s": step} for step in stops]},
                "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--accent)"},
                "encoding": {
                    "x": {"field": "s", "type": "quantitative"},
                    "tooltip": [{"field": "s", "type": "quantitative", "title": "restart at step"}],
                },
            },
        )
    return {"data": {"values": values}, "height": 220, "layer": layers}


def _shown_if(few: list[str]) -> Spec:
    return {
        "condition": [
            {"param": "hover", "empty": False, "value": 1},
            {"test": {"field": "r", "oneOf": few}, "value": 0.9},
        ],
        "value": 0,
    }


def _dashes(number: int) -> list[list[int]]:
    """Dashes that differ where colours are the same again."""
    return [DASHES[(i + i // len(SERIES)) % len(DASHES)] for i in range(number)]


def _cycled(items: Sequence[Any], number: int) -> Iterable[Any]:
    return (items[i % len(items)] for i in range(number))


def _whole_axis(values: Sequence[dict[str, Any]]) -> Spec:
    last = max((row["s"] for row in values), default=0)
    return {"format": "~s" if last >= 10_000 else ",d", "tickMinStep": 1, "labelFlush": True}


def intervals(
    rows: Sequence[dict[str, Any]],
    x: str,
    *,
    zero_line: bool = False,
    form: str = ".1f",
    colors: Sequence[tuple[str, str]] = (),
) -> Spec:
    """A point and its interval for each row: ``name``, ``v``, ``low``, ``high``, ``group``.

    Rows from top to bottom as given; ``colors`` names a colour for each group.
    """
    wrapped = [{**row, "name": "\n".join(textwrap.wrap(row["name"], 28))} for row in rows]
    names = [row["name"] for row in wrapped]
    y = {
        "field": "name",
        "type": "nominal",
        "sort": None,
        "title": None,
        "scale": {"domain": names},
        "axis": {"labelExpr": "split(datum.label, '\\n')", "labelLimit": 190, "ticks": False},
    }
    color = {
        "field": "group",
        "type": "nominal",
        "legend": {"title": None, "orient": "top", "columns": 2},
        "scale": {"domain": [name for name, _ in colors], "range": [c for _, c in colors]},
    }
    shared = {"y": y, "color": color if colors else {"value": "var(--c1)"}}
    tooltip = [
        {"field": "name", "type": "nominal", "title": "of"},
        {"field": "v", "type": "quantitative", "title": x, "format": form},
        {"field": "low", "type": "quantitative", "title": "from", "format": form},
        {"field": "high", "type": "quantitative", "title": "to", "format": form},
    ]
    ends = [row[end] for row in rows for end in ("low", "high")]
    edge = 0.03 * (max(ends) - min(ends))
    axis = {
        "title": x,
        "scale": {"domain": [min(ends) - edge, max(ends) + edge], "nice": False},
        "axis": {"tickCount": 8, "labelFlush": False},
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2.5},
            "encoding": {
                **shared,
                "x": {"field": "low", "type": "quantitative", **axis},
                "x2": {"field": "high"},
                "tooltip": tooltip,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                **shared,
                "x": {"field": "v", "type": "quantitative", **axis},
                "tooltip": tooltip,
            },
        },
    ]
    if zero_line:
        rule = {"type": "rule", "color": "var(--ink-2)", "strokeDash": [4, 3]}
        layers.insert(0, {"mark": rule, "encoding": {"x": {"datum": 0, "type": "quantitative"}}})
    return {"data": {"values": wrapped}, "height": ROW_OF_INTERVALS * len(rows), "layer": layers}


def ranked(rows: Sequence[dict[str, Any]], x: str, y: str, mean: float) -> Spec:
    """Points with intervals, by their place ``i``: ``name``, ``v``, ``low``, ``high``, ``n``."""
    place = {
        "field": "i",
        "type": "quantitative",
        "title": x,
        "scale": {"nice": False, "padding": 6},
        "axis": {"tickMinStep": 1, "format": ",d"},
    }
    tooltip = [
        {"field": "name", "type": "nominal", "title": "class"},
        {"field": "v", "type": "quantitative", "title": y, "format": ".1f"},
        {"field": "low", "type": "quantitative", "title": "from", "format": ".1f"},
        {"field": "high", "type": "quantitative", "title": "to", "format": ".1f"},
        {"field": "n", "type": "quantitative", "title": "pictures", "format": ",d"},
    ]
    vertical = {"type": "quantitative", "title": y, "scale": {"zero": False}}
    return {
        "data": {"values": list(rows)},
        "height": 240,
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--ink-2)", "strokeDash": [4, 3]},
                "encoding": {"y": {"datum": mean, "type": "quantitative"}},
            },
            {
                "mark": {"type": "rule", "color": "var(--c1)", "strokeWidth": 1.5, "opacity": 0.55},
                "encoding": {
                    "x": place,
                    "y": {"field": "low", **vertical},
                    "y2": {"field": "high"},
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 40, "color": "var(--c1)"},
                "encoding": {"x": place, "y": {"field": "v", **vertical}, "tooltip": tooltip},
            },
        ],
    }


def heat_map(
    columns: dict[str, list[Any]],
    *,
    x: str,
    y: str,
    value: str,
    rows: Sequence[str],
    across: Sequence[str],
    domain: tuple[float, float],
    kind: str = "linear",
    extra: Sequence[tuple[str, str, str]] = (),
    row_height: int = ROW,
) -> Spec:
    """Coloured cells. ``columns`` holds x, y, v and extra columns, a value for each cell.

    ``rows`` and ``across`` are the names from top to bottom and from left to right; ``extra`` are
    (column, title, format) for the tooltip.
    """
    many = len(across) > 40
    return {
        "data": {"values": [columns]},
        "transform": [{"flatten": list(columns)}],
        "height": max(60, row_height * len(rows)),
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "x",
                "type": "nominal",
                "title": x,
                "scale": {"domain": list(across)},
                "axis": {
                    "labelAngle": -90 if len(across) > 4 else 0,
                    "labelFontSize": 9 if many else 11,
                    "labelLimit": 110,
                    "labelOverlap": True,
                    "orient": "bottom",
                    "ticks": False,
                },
            },
            "y": {
                "field": "y",
                "type": "nominal",
                "title": y,
                "scale": {"domain": list(rows)},
                "axis": {
                    "labelLimit": 120,
                    "labelFontSize": 10,
                    "labelOverlap": True,
                    "ticks": False,
                },
            },
            "color": {
                "field": "v",
                "type": "quantitative",
                "scale": {"domain": list(domain), "scheme": "viridis", "type": kind},
                "legend": {
                    "title": value,
                    "orient": "top",
                    "format": ".0%",
                    "gradientLength": 160,
                    **({"values": [0, 0.05, 0.2, 0.5, 1]} if kind == "sqrt" else {"tickCount": 5}),
                },
            },
            "tooltip": [
                {"field": "y", "type": "nominal", "title": y},
                {"field": "x", "type": "nominal", "title": x},
                {"field": "v", "type": "quantitative", "title": value, "format": ".1%"},
                *(
                    {"field": field, "type": "quantitative", "title": title, "format": form}
                    for field, title, form in extra
                ),
            ],
        },
    }


def stacked(rows: Sequence[dict[str, Any]], names: Sequence[str], x: str, y: str) -> Spec:
    """Stacked horizontal bars: ``name``, ``part``, ``v`` and ``say``, a word on the whole bar."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    return {
        "data": {"values": list(rows)},
        "height": max(60, ROW * len(names)),
        "mark": {"type": "bar"},
        "encoding": {
            "y": {
                "field": "name",
                "type": "nominal",
                "title": y,
                "scale": {"domain": list(names), "padding": 0.15},
                "axis": {
                    "labelLimit": 120,
                    "labelFontSize": 10,
                    "labelOverlap": True,
                    "ticks": False,
                },
            },
            "x": {
                "field": "v",
                "type": "quantitative",
                "title": x,
                "scale": {"domain": [0, 0.25]},
                "axis": {"tickCount": 5},
            },
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": parts, "range": list(SERIES[: len(parts)])},
                "legend": {"title": None, "orient": "top", "columns": 1},
            },
            "order": {"field": "o", "type": "quantitative"},
            "tooltip": [
                {"field": "name", "type": "nominal", "title": y},
                {"field": "part", "type": "nominal", "title": "variance"},
                {"field": "v", "type": "quantitative", "title": "of that", "format": ".4f"},
                {"field": "say", "type": "nominal", "title": "decides"},
            ],
        },
    }


def histogram(rows: Sequence[dict[str, Any]], x: str, y: str, groups: Sequence[str]) -> Spec:
    """Bars of counts: ``low``, ``high``, ``n`` and ``group``; shares on the x axis."""
    color: Spec = {"value": SERIES[0]}
    if len(groups) > 1:
        color = {
            "field": "group",
            "type": "nominal",
            "scale": {"domain": list(groups), "range": list(_cycled(SERIES, len(groups)))},
            "legend": {"title": None, "orient": "top", "columns": 1},
        }
    axis = {"format": ".0%"}
    return {
        "data": {"values": list(rows)},
        "height": 220,
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": {
            "x": {
                "field": "low",
                "type": "quantitative",
                "bin": {"binned": True},
                "title": x,
                "scale": {"domain": [0, 1]},
                "axis": axis,
            },
            "x2": {"field": "high"},
            "y": {"field": "n", "type": "quantitative", "title": y, "stack": True},
            "color": color,
            "tooltip": [
                {"field": "low", "type": "quantitative", "title": "from", "format": ".0%"},
                {"field": "high", "type": "quantitative", "title": "to", "format": ".0%"},
                {"field": "n", "type": "quantitative", "title": y, "format": ",d"},
                *([{"field": "group", "type": "nominal"}] if len(groups) > 1 else []),
            ],
        },
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
