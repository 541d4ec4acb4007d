"""Lines over steps or layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from adafilter_dist.report.page.blocks import Spec
from adafilter_dist.report.page.charts.styles import SERIES, cycled, dashes

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
        "scale": {"domain": names, "range": list(cycled(SERIES, len(names)))},
        "legend": legend,
    }
    dash = {
        "field": "r",
        "type": "nominal",
        "scale": {"domain": names, "range": dashes(len(names))},
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


def _whole_axis(values: Sequence[dict[str, Any]]) -> Spec:
    last = max((row["s"] for row in values), default=0)
    return {"format": "~s" if last >= 10_000 else ",d", "tickMinStep": 1, "labelFlush": True}


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
