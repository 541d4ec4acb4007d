"""Points with their intervals: a row or a place each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from adafilter_dist.report.page.blocks import Spec
from adafilter_dist.report.page.charts.styles import ROW_OF_INTERVALS, SHAPES


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
    # The shape says the group, too: some colours are one to the colour-blind, and in print.
    shapes = {**color, "scale": {"domain": [name for name, _ in colors], "range": list(SHAPES)}}
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
                **({"shape": shapes} if colors else {}),
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
